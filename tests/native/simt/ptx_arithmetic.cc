// Opcode table, part 1: everything that works lane by lane on registers.
#include <bit>
#include <cmath>

#include "ptx_table.h"

namespace simt::ptx {

namespace {

// d = F(a), F(a, b), F(a, b, c): T are the operand types, the first one the result's.
template <class D, class A, auto F>
void unary(Warp& warp, const Instruction& i, LaneMask mask) {
  auto* d = warp.lanes<D>(i.operand[0]);
  const auto* a = warp.lanes<A>(i.operand[1]);
  each_lane(mask, [&](int l) { d[l] = widen<D>(F(narrow<A>(a[l]))); });
}

template <class D, class A, class B, auto F>
void binary(Warp& warp, const Instruction& i, LaneMask mask) {
  auto* d = warp.lanes<D>(i.operand[0]);
  const auto* a = warp.lanes<A>(i.operand[1]);
  const auto* b = warp.lanes<B>(i.operand[2]);
  each_lane(mask, [&](int l) { d[l] = widen<D>(F(narrow<A>(a[l]), narrow<B>(b[l]))); });
}

template <class D, class A, class B, class C, auto F>
void ternary(Warp& warp, const Instruction& i, LaneMask mask) {
  auto* d = warp.lanes<D>(i.operand[0]);
  const auto* a = warp.lanes<A>(i.operand[1]);
  const auto* b = warp.lanes<B>(i.operand[2]);
  const auto* c = warp.lanes<C>(i.operand[3]);
  each_lane(mask, [&](int l) { d[l] = widen<D>(F(narrow<A>(a[l]), narrow<B>(b[l]), narrow<C>(c[l]))); });
}

template <class A, auto F>
void compare(Warp& warp, const Instruction& i, LaneMask mask) {
  const auto* a = warp.lanes<A>(i.operand[1]);
  const auto* b = warp.lanes<A>(i.operand[2]);
  LaneMask result = 0;
  for (int l = 0; l < 32; l++) result |= LaneMask(bool(F(narrow<A>(a[l]), narrow<A>(b[l])))) << l;
  assign_predicate(warp, i.operand[0], result, mask);
}

// setp.cmp.{and,or}.type p, a, b, q: p = compare op q
template <class A, auto F, auto Combine>
void compare_and_combine(Warp& warp, const Instruction& i, LaneMask mask) {
  const LaneMask other = read_predicate(warp, i, 3);
  compare<A, F>(warp, i, mask);
  const LaneMask result = Combine(warp.predicates[size_t(i.operand[0])], other);
  assign_predicate(warp, i.operand[0], result, mask);
}

template <auto F>
void predicate_logic(Warp& warp, const Instruction& i, LaneMask mask) {
  const LaneMask a = read_predicate(warp, i, 1), b = i.count > 2 ? read_predicate(warp, i, 2) : 0;
  assign_predicate(warp, i.operand[0], F(a, b), mask);
}

template <class T>
void select(Warp& warp, const Instruction& i, LaneMask mask) {
  auto* d = warp.lanes<T>(i.operand[0]);
  const auto* a = warp.lanes<T>(i.operand[1]);
  const auto* b = warp.lanes<T>(i.operand[2]);
  const LaneMask p = read_predicate(warp, i, 3);
  each_lane(mask, [&](int l) { d[l] = p >> l & 1 ? a[l] : b[l]; });
}

// ----------------------------------------------------------------------------------------------------------
// definitions

constexpr auto kAdd = [](auto a, auto b) { return a + b; };
constexpr auto kSubtract = [](auto a, auto b) { return a - b; };
constexpr auto kMultiply = [](auto a, auto b) { return a * b; };
constexpr auto kMultiplyAdd = [](auto a, auto b, auto c) { return a * b + c; };
constexpr auto kDivide = [](auto a, auto b) { return b == 0 ? decltype(a)(-1) : a / b; };  // PTX: unspecified by zero
constexpr auto kRemainder = [](auto a, auto b) { return b == 0 ? a : a % b; };
constexpr auto kMinimum = [](auto a, auto b) { return a < b ? a : b; };
constexpr auto kMaximum = [](auto a, auto b) { return a > b ? a : b; };
constexpr auto kAnd = [](auto a, auto b) { return a & b; };
constexpr auto kOr = [](auto a, auto b) { return a | b; };
constexpr auto kXor = [](auto a, auto b) { return a ^ b; };
constexpr auto kNot = [](auto a) { return ~a; };
constexpr auto kNegate = [](auto a) { return -a; };
constexpr auto kIdentity = [](auto a) { return a; };
// Shift counts beyond the width give 0, or the sign.
constexpr auto kShiftLeft = [](auto a, uint32_t n) {
  return n >= 8 * sizeof(a) ? decltype(a)(0) : decltype(a)(a << n);
};
constexpr auto kShiftRight = [](auto a, uint32_t n) {
  if (n >= 8 * sizeof(a)) return a < 0 ? decltype(a)(-1) : decltype(a)(0);
  return decltype(a)(a >> n);
};

constexpr auto kEqual = [](auto a, auto b) { return a == b; };
constexpr auto kNotEqual = [](auto a, auto b) { return a != b; };
constexpr auto kLess = [](auto a, auto b) { return a < b; };
constexpr auto kLessEqual = [](auto a, auto b) { return a <= b; };
constexpr auto kGreater = [](auto a, auto b) { return a > b; };
constexpr auto kGreaterEqual = [](auto a, auto b) { return a >= b; };
// Floats: eq..ge are ordered, the u forms are true for a NaN. (a != b) is true for a NaN: that is neu; ne is ordered.
constexpr auto kOrdered = [](float a, float b) { return a == a && b == b; };
constexpr auto kUnordered = [](float a, float b) { return !(a == a && b == b); };
constexpr auto kOrderedNotEqual = [](float a, float b) { return a < b || a > b; };
constexpr auto kUnorderedEqual = [](float a, float b) { return !(a < b || a > b); };
constexpr auto kUnorderedLess = [](float a, float b) { return !(a >= b); };
constexpr auto kUnorderedLessEqual = [](float a, float b) { return !(a > b); };
constexpr auto kUnorderedGreater = [](float a, float b) { return !(a <= b); };
constexpr auto kUnorderedGreaterEqual = [](float a, float b) { return !(a < b); };

template <class T>
void add_integer(Table& table, const std::string& type) {
  const char c = sizeof(T) == 8 ? 'd' : 'r';
  const std::string two{c, c}, three{c, c, c}, four{c, c, c, c};
  table.add("add." + type, three, binary<T, T, T, kAdd>);
  table.add("sub." + type, three, binary<T, T, T, kSubtract>);
  table.add("mul.lo." + type, three, binary<T, T, T, kMultiply>);
  table.add("mad.lo." + type, four, ternary<T, T, T, T, kMultiplyAdd>);
  table.add("div." + type, three, binary<T, T, T, kDivide>);
  table.add("rem." + type, three, binary<T, T, T, kRemainder>);
  table.add("min." + type, three, binary<T, T, T, kMinimum>);
  table.add("max." + type, three, binary<T, T, T, kMaximum>);
  table.add("shr." + type, {c, c, 'r'}, binary<T, T, uint32_t, kShiftRight>);
  table.add("mov." + type, two, unary<T, T, kIdentity>);
  if (std::is_signed_v<T>) {
    table.add("neg." + type, two, unary<T, T, kNegate>);
    table.add("abs." + type, two, unary<T, T, [](T a) { return a < 0 ? -a : a; }>);
  }
}

template <class T>
void add_bits(Table& table, const std::string& type) {
  const char c = sizeof(T) == 8 ? 'd' : 'r';
  const std::string two{c, c}, three{c, c, c};
  table.add("and." + type, three, binary<T, T, T, kAnd>);
  table.add("or." + type, three, binary<T, T, T, kOr>);
  table.add("xor." + type, three, binary<T, T, T, kXor>);
  table.add("not." + type, two, unary<T, T, kNot>);
  table.add("shl." + type, {c, c, 'r'}, binary<T, T, uint32_t, kShiftLeft>);
  table.add("shr." + type, {c, c, 'r'}, binary<T, T, uint32_t, kShiftRight>);
  table.add("selp." + type, {c, c, c, 'p'}, select<T>);
}

template <class T, auto F>
void add_comparison(Table& table, const std::string& comparison, const std::string& type) {
  const std::string operands = sizeof(T) == 8 ? "pdd" : "prr";
  table.add("setp." + comparison + "." + type, operands, compare<T, F>);
  table.add("setp." + comparison + ".and." + type, operands + "p", compare_and_combine<T, F, kAnd>);
  table.add("setp." + comparison + ".or." + type, operands + "p", compare_and_combine<T, F, kOr>);
}

template <class T>
void add_integer_comparisons(Table& table, const std::string& type) {
  add_comparison<T, kEqual>(table, "eq", type);
  add_comparison<T, kNotEqual>(table, "ne", type);
  add_comparison<T, kLess>(table, "lt", type);
  add_comparison<T, kLessEqual>(table, "le", type);
  add_comparison<T, kGreater>(table, "gt", type);
  add_comparison<T, kGreaterEqual>(table, "ge", type);
}

void add_float(Table& table) {
  for (const char* rounding : {"", "rn."}) {
    const std::string r = rounding;
    table.add("add." + r + "f32", "rrr", binary<float, float, float, kAdd>);
    table.add("sub." + r + "f32", "rrr", binary<float, float, float, kSubtract>);
    table.add("mul." + r + "f32", "rrr", binary<float, float, float, kMultiply>);
  }
  table.add("fma.rn.f32", "rrrr",
            ternary<float, float, float, float, [](float a, float b, float c) { return std::fma(a, b, c); }>);
  table.add("fma.rm.f32", "rrrr",
            ternary<float, float, float, float, [](float a, float b, float c) { return fma_rd(a, b, c); }>);
  table.add("div.rn.f32", "rrr", binary<float, float, float, [](float a, float b) { return a / b; }>);
  table.add("rcp.rn.f32", "rr", unary<float, float, [](float a) { return 1.f / a; }>);
  table.add("sqrt.rn.f32", "rr", unary<float, float, [](float a) { return std::sqrt(a); }>);
  table.add("min.f32", "rrr", binary<float, float, float, [](float a, float b) { return fminf(a, b); }>);
  table.add("max.f32", "rrr", binary<float, float, float, [](float a, float b) { return fmaxf(a, b); }>);
  table.add("neg.f32", "rr", unary<float, float, kNegate>);
  table.add("abs.f32", "rr", unary<float, float, [](float a) { return std::fabs(a); }>);
  table.add("mov.f32", "rr", unary<float, float, kIdentity>);
  table.add("selp.f32", "rrrp", select<float>);
  table.add("copysign.f32", "rrr", binary<float, float, float, [](float a, float b) { return std::copysign(b, a); }>);
  table.add("ex2.approx.ftz.f32", "rr", unary<float, float, [](float a) { return ex2(a); }>);
  table.add("lg2.approx.ftz.f32", "rr", unary<float, float, [](float a) { return lg2(a); }>);
  table.add("rcp.approx.ftz.f32", "rr", unary<float, float, [](float a) { return rcp(a); }>);
  table.add("tanh.approx.f32", "rr", unary<float, float, [](float a) { return tanh_approx(a); }>);
  add_comparison<float, kEqual>(table, "eq", "f32");
  add_comparison<float, kOrderedNotEqual>(table, "ne", "f32");
  add_comparison<float, kLess>(table, "lt", "f32");
  add_comparison<float, kLessEqual>(table, "le", "f32");
  add_comparison<float, kGreater>(table, "gt", "f32");
  add_comparison<float, kGreaterEqual>(table, "ge", "f32");
  add_comparison<float, kUnorderedEqual>(table, "equ", "f32");
  add_comparison<float, kNotEqual>(table, "neu", "f32");
  add_comparison<float, kUnorderedLess>(table, "ltu", "f32");
  add_comparison<float, kUnorderedLessEqual>(table, "leu", "f32");
  add_comparison<float, kUnorderedGreater>(table, "gtu", "f32");
  add_comparison<float, kUnorderedGreaterEqual>(table, "geu", "f32");
  add_comparison<float, kOrdered>(table, "num", "f32");
  add_comparison<float, kUnordered>(table, "nan", "f32");
}

template <class D, class A>
void add_conversion(Table& table, const std::string& d, const std::string& a) {
  table.add("cvt." + d + "." + a, {sizeof(D) == 8 ? 'd' : 'r', sizeof(A) == 8 ? 'd' : 'r'},
            unary<D, A, [](A x) { return D(x); }>);
}

template <class D>
void add_integer_conversions(Table& table, const std::string& d) {
  add_conversion<D, uint8_t>(table, d, "u8");
  add_conversion<D, int8_t>(table, d, "s8");
  add_conversion<D, uint16_t>(table, d, "u16");
  add_conversion<D, int16_t>(table, d, "s16");
  add_conversion<D, uint32_t>(table, d, "u32");
  add_conversion<D, int32_t>(table, d, "s32");
  add_conversion<D, uint64_t>(table, d, "u64");
  add_conversion<D, int64_t>(table, d, "s64");
}

template <class D>
void add_conversions_from_float(Table& table, const std::string& d) {
  const std::string operands = sizeof(D) == 8 ? "dr" : "rr";
  table.add("cvt.rni." + d + ".f32", operands,
            unary<D, float, [](float x) { return float_to_integer<D>(std::nearbyint(double(x))); }>);
  table.add("cvt.rzi." + d + ".f32", operands,
            unary<D, float, [](float x) { return float_to_integer<D>(std::trunc(double(x))); }>);
}

void add_conversions(Table& table) {
  add_integer_conversions<uint8_t>(table, "u8");
  add_integer_conversions<int8_t>(table, "s8");
  add_integer_conversions<uint16_t>(table, "u16");
  add_integer_conversions<int16_t>(table, "s16");
  add_integer_conversions<uint32_t>(table, "u32");
  add_integer_conversions<int32_t>(table, "s32");
  add_integer_conversions<uint64_t>(table, "u64");
  add_integer_conversions<int64_t>(table, "s64");
  add_conversions_from_float<uint32_t>(table, "u32");
  add_conversions_from_float<int32_t>(table, "s32");
  add_conversions_from_float<int64_t>(table, "s64");
  add_conversions_from_float<uint64_t>(table, "u64");
  table.add("cvt.rn.f32.u8", "rr", unary<float, uint8_t, [](uint8_t x) { return float(x); }>);
  table.add("cvt.rn.f32.s8", "rr", unary<float, int8_t, [](int8_t x) { return float(x); }>);
  table.add("cvt.rn.f32.u16", "rr", unary<float, uint16_t, [](uint16_t x) { return float(x); }>);
  table.add("cvt.rn.f32.s16", "rr", unary<float, int16_t, [](int16_t x) { return float(x); }>);
  table.add("cvt.rn.f32.u32", "rr", unary<float, uint32_t, [](uint32_t x) { return float(x); }>);
  table.add("cvt.rn.f32.s32", "rr", unary<float, int32_t, [](int32_t x) { return float(x); }>);
  table.add("cvt.rn.f32.s64", "rd", unary<float, int64_t, [](int64_t x) { return float(x); }>);
  table.add("cvt.rn.f32.u64", "rd", unary<float, uint64_t, [](uint64_t x) { return float(x); }>);
  table.add("cvt.rni.f32.f32", "rr", unary<float, float, [](float x) { return std::nearbyint(x); }>);
  table.add("cvt.rmi.f32.f32", "rr", unary<float, float, [](float x) { return std::floor(x); }>);
  table.add("cvt.rpi.f32.f32", "rr", unary<float, float, [](float x) { return std::ceil(x); }>);
  table.add("cvt.f32.f16", "rr", unary<float, uint16_t, [](uint16_t x) { return f32_from_f16(x); }>);
  table.add("cvt.f32.bf16", "rr", unary<float, uint16_t, [](uint16_t x) { return f32_from_bf16(x); }>);
  table.add("cvt.rn.f16.f32", "rr", unary<uint16_t, float, [](float x) { return f16_from_f32(x); }>);
  table.add("cvt.rn.bf16.f32", "rr", unary<uint16_t, float, [](float x) { return bf16_from_f32(x); }>);
  // d = {a in the upper half, b in the lower}
  table.add("cvt.rn.f16x2.f32", "rrr", binary<uint32_t, float, float, [](float a, float b) {
              return uint32_t(f16_from_f32(a)) << 16 | f16_from_f32(b);
            }>);
  table.add("cvt.rn.bf16x2.f32", "rrr", binary<uint32_t, float, float, [](float a, float b) {
              return uint32_t(bf16_from_f32(a)) << 16 | bf16_from_f32(b);
            }>);
  table.add("cvt.pack.sat.u8.s32.b32", "rrrr",
            ternary<uint32_t, int32_t, int32_t, uint32_t,
                    [](int32_t a, int32_t b, uint32_t c) { return pack_saturated<uint8_t>(a, b, c); }>);
  table.add("cvt.pack.sat.s8.s32.b32", "rrrr",
            ternary<uint32_t, int32_t, int32_t, uint32_t,
                    [](int32_t a, int32_t b, uint32_t c) { return pack_saturated<int8_t>(a, b, c); }>);
}

// Insert: bits [position, position + length) of b replaced by the low bits of a. Operands: d, a, b, position, length.
template <class T>
void insert_bits(Warp& warp, const Instruction& i, LaneMask mask) {
  auto* d = warp.lanes<T>(i.operand[0]);
  const T *a = warp.lanes<T>(i.operand[1]), *b = warp.lanes<T>(i.operand[2]);
  const uint32_t *position = warp.lanes<uint32_t>(i.operand[3]), *length = warp.lanes<uint32_t>(i.operand[4]);
  each_lane(mask, [&](int l) {
    const T ones = length[l] >= 8 * sizeof(T) ? ~T(0) : (T(1) << length[l]) - 1, field = kShiftLeft(ones, position[l]);
    d[l] = (b[l] & ~field) | (kShiftLeft(a[l], position[l]) & field);
  });
}

// lop3.b32 d, a, b, c, table: bit (a<<2 | b<<1 | c) of the table, for every bit.
void logic_3(Warp& warp, const Instruction& i, LaneMask mask) {
  auto* d = warp.lanes<uint32_t>(i.operand[0]);
  const uint32_t *a = warp.lanes<uint32_t>(i.operand[1]), *b = warp.lanes<uint32_t>(i.operand[2]),
                 *c = warp.lanes<uint32_t>(i.operand[3]);
  each_lane(mask, [&](int l) {
    uint32_t result = 0;
    for (int bit = 0; bit < 8; bit++)
      if (i.immediate >> bit & 1)
        result |= (bit & 4 ? a[l] : ~a[l]) & (bit & 2 ? b[l] : ~b[l]) & (bit & 1 ? c[l] : ~c[l]);
    d[l] = result;
  });
}

// mov between a wide register and a vector of its parts; part 0 is the low one.
template <class Wide, class Part>
void pack_vector(Warp& warp, const Instruction& i, LaneMask mask) {
  auto* d = warp.lanes<Wide>(i.operand[0]);
  each_lane(mask, [&](int l) {
    uint64_t value = 0;
    for (size_t part = 0; part < sizeof(Wide) / sizeof(Part); part++)
      value |= uint64_t(Part(warp.lanes<uint32_t>(i.operand[1 + part])[l])) << (8 * sizeof(Part) * part);
    d[l] = Warp::Storage<Wide>(value);
  });
}
template <class Wide, class Part>
void unpack_vector(Warp& warp, const Instruction& i, LaneMask mask) {
  constexpr size_t kParts = sizeof(Wide) / sizeof(Part);
  const auto* a = warp.lanes<Wide>(i.operand[kParts]);
  each_lane(mask, [&](int l) {
    const uint64_t value = a[l];  // read first: a part may be the source register
    for (size_t part = 0; part < kParts; part++)
      warp.lanes<uint32_t>(i.operand[part])[l] = Part(value >> (8 * sizeof(Part) * part));
  });
}

// mov.bNN is a plain move, a pack or an unpack, by its operands' form.
template <class Wide, class Part>
void move_bits(Warp& warp, const Instruction& i, LaneMask mask) {
  constexpr int kParts = sizeof(Wide) / sizeof(Part);
  if (i.count == 2) return unary<Wide, Wide, kIdentity>(warp, i, mask);
  const bool unpack = i.text[i.text.find_first_of(" \t", i.text.find("mov.")) + 1] == '{';
  if (i.count != 1 + kParts) fail(warp, i, "mov of a vector of another length");
  unpack ? unpack_vector<Wide, Part>(warp, i, mask) : pack_vector<Wide, Part>(warp, i, mask);
}

void add_special(Table& table) {
  table.add("mul.wide.u16", "rrr",
            binary<uint32_t, uint16_t, uint16_t, [](uint16_t a, uint16_t b) { return uint32_t(a) * b; }>);
  table.add("mul.wide.s16", "rrr",
            binary<int32_t, int16_t, int16_t, [](int16_t a, int16_t b) { return int32_t(a) * b; }>);
  table.add("mul.wide.u32", "drr",
            binary<uint64_t, uint32_t, uint32_t, [](uint32_t a, uint32_t b) { return uint64_t(a) * b; }>);
  table.add("mul.wide.s32", "drr",
            binary<int64_t, int32_t, int32_t, [](int32_t a, int32_t b) { return int64_t(a) * b; }>);
  table.add("mad.wide.u32", "drrd",
            ternary<uint64_t, uint32_t, uint32_t, uint64_t,
                    [](uint32_t a, uint32_t b, uint64_t c) { return uint64_t(a) * b + c; }>);
  table.add(
      "mad.wide.s32", "drrd",
      ternary<int64_t, int32_t, int32_t, int64_t, [](int32_t a, int32_t b, int64_t c) { return int64_t(a) * b + c; }>);
  table.add(
      "mul.hi.u32", "rrr",
      binary<uint32_t, uint32_t, uint32_t, [](uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }>);
  table.add("mul.hi.s32", "rrr",
            binary<int32_t, int32_t, int32_t, [](int32_t a, int32_t b) { return int32_t(int64_t(a) * b >> 32); }>);
  table.add("prmt.b32", "rrrr", ternary<uint32_t, uint32_t, uint32_t, uint32_t, [](uint32_t a, uint32_t b, uint32_t s) {
              return prmt(a, b, s);
            }>);
  table.add("dp4a.u32.u32", "rrrr",
            ternary<uint32_t, uint32_t, uint32_t, uint32_t,
                    [](uint32_t a, uint32_t b, uint32_t c) { return dp4a<uint8_t, uint8_t>(a, b, c); }>);
  table.add("dp4a.s32.s32", "rrrr",
            ternary<uint32_t, uint32_t, uint32_t, uint32_t,
                    [](uint32_t a, uint32_t b, uint32_t c) { return dp4a<int8_t, int8_t>(a, b, c); }>);
  table.add("popc.b32", "rr", unary<uint32_t, uint32_t, [](uint32_t a) { return uint32_t(std::popcount(a)); }>);
  table.add("clz.b32", "rr", unary<uint32_t, uint32_t, [](uint32_t a) { return uint32_t(std::countl_zero(a)); }>);
  table.add("bfe.u32", "rrrr",
            ternary<uint32_t, uint32_t, uint32_t, uint32_t, [](uint32_t a, uint32_t position, uint32_t length) {
              return kShiftRight(a, position) & (length >= 32 ? ~0u : (1u << length) - 1);
            }>);
  table.add("bfi.b32", "rrrrr", insert_bits<uint32_t>);
  table.add("bfi.b64", "dddrr", insert_bits<uint64_t>);
  table.add("lop3.b32", "rrrri", logic_3);
  // The upper word of {b, a} shifted left by n % 32, and the lower word of it shifted right.
  table.add("shf.l.wrap.b32", "rrrr",
            ternary<uint32_t, uint32_t, uint32_t, uint32_t, [](uint32_t a, uint32_t b, uint32_t n) {
              return uint32_t(((uint64_t(b) << 32 | a) << (n % 32)) >> 32);
            }>);
  table.add("shf.r.wrap.b32", "rrrr",
            ternary<uint32_t, uint32_t, uint32_t, uint32_t,
                    [](uint32_t a, uint32_t b, uint32_t n) { return uint32_t((uint64_t(b) << 32 | a) >> (n % 32)); }>);
  table.add("mov.b16", "rr", unary<uint16_t, uint16_t, kIdentity>);
  table.add("mov.b32", "VV", move_bits<uint32_t, uint16_t>);
  table.add("mov.b64", "XX", move_bits<uint64_t, uint32_t>);
  for (const char* space : {"global", "shared"}) {  // addresses are the same in every state space here
    table.add(std::string("cvta.to.") + space + ".u64", "dd", unary<uint64_t, uint64_t, kIdentity>);
    table.add(std::string("cvta.") + space + ".u64", "dd", unary<uint64_t, uint64_t, kIdentity>);
  }
  table.add("and.pred", "ppp", predicate_logic<kAnd>);
  table.add("or.pred", "ppp", predicate_logic<kOr>);
  table.add("xor.pred", "ppp", predicate_logic<kXor>);
  table.add("not.pred", "pp", predicate_logic<[](LaneMask a, LaneMask) { return ~a; }>);
  table.add("mov.pred", "pp", predicate_logic<[](LaneMask a, LaneMask) { return a; }>);
}

}  // namespace

void add_arithmetic(Table& table) {
  add_integer<uint16_t>(table, "u16");
  add_integer<int16_t>(table, "s16");
  add_integer<uint32_t>(table, "u32");
  add_integer<int32_t>(table, "s32");
  add_integer<uint64_t>(table, "u64");
  add_integer<int64_t>(table, "s64");
  add_bits<uint16_t>(table, "b16");
  add_bits<uint32_t>(table, "b32");
  add_bits<uint64_t>(table, "b64");
  table.add("selp.u16", "rrrp", select<uint16_t>);
  table.add("selp.s16", "rrrp", select<int16_t>);
  table.add("selp.u32", "rrrp", select<uint32_t>);
  table.add("selp.s32", "rrrp", select<int32_t>);
  table.add("selp.u64", "dddp", select<uint64_t>);
  table.add("selp.s64", "dddp", select<int64_t>);
  add_integer_comparisons<uint16_t>(table, "u16");
  add_integer_comparisons<int16_t>(table, "s16");
  add_integer_comparisons<uint32_t>(table, "u32");
  add_integer_comparisons<int32_t>(table, "s32");
  add_integer_comparisons<uint64_t>(table, "u64");
  add_integer_comparisons<int64_t>(table, "s64");
  add_integer_comparisons<uint16_t>(table, "b16");
  add_integer_comparisons<uint32_t>(table, "b32");
  add_integer_comparisons<uint64_t>(table, "b64");
  add_float(table);
  add_conversions(table);
  add_special(table);
}

}  // namespace simt::ptx
