// PTX text -> Module. Handles what nvcc writes; anything else is an error with its line.
#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

#include "ptx.h"
#include "ptx_program.h"

namespace simt::ptx {

namespace {

std::string trim(const std::string& s) {
  const size_t begin = s.find_first_not_of(" \t\r\n"), end = s.find_last_not_of(" \t\r\n");
  return begin == std::string::npos ? "" : s.substr(begin, end - begin + 1);
}

// Splits at commas outside of {} and [].
std::vector<std::string> split_operands(const std::string& s) {
  std::vector<std::string> parts;
  std::string part;
  int depth = 0;
  for (char c : s) {
    depth += (c == '{' || c == '[') - (c == '}' || c == ']');
    if (c == ',' && depth == 0) {
      parts.push_back(trim(part));
      part.clear();
    } else {
      part += c;
    }
  }
  if (!trim(part).empty()) parts.push_back(trim(part));
  return parts;
}

bool is_identifier(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%'; }

size_t type_bytes(const std::string& type) {
  size_t digits = type.find_first_of("0123456789");
  if (digits == std::string::npos) throw Error("PTX type " + type + " has no size");
  return size_t(std::atoi(type.c_str() + digits)) / 8;
}

class Parser {
 public:
  explicit Parser(std::string text) : text_(std::move(text)) {}

  Module parse() {
    strip_comments();
    while (skip_space(), at_ < text_.size()) parse_directive();
    return std::move(module_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) { throw Error("PTX line " + std::to_string(line_) + ": " + what); }

  // Comments become spaces; newlines stay, for the line numbers.
  void strip_comments() {
    for (size_t i = 0; i + 1 < text_.size(); i++) {
      if (text_[i] != '/' || (text_[i + 1] != '/' && text_[i + 1] != '*')) continue;
      const bool line_comment = text_[i + 1] == '/';
      const size_t end = std::min(line_comment ? text_.find('\n', i) : text_.find("*/", i + 2) + 2, text_.size());
      for (; i < end; i++)
        if (text_[i] != '\n') text_[i] = ' ';
    }
  }

  void skip_space() {
    while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_]))) line_ += text_[at_++] == '\n';
  }
  // Text up to one of `ends`, which stays unread.
  std::string read_until(const char* ends) {
    std::string s;
    while (at_ < text_.size() && !std::strchr(ends, text_[at_])) {
      line_ += text_[at_] == '\n';
      s += text_[at_] == '\n' || text_[at_] == '\t' ? ' ' : text_[at_];
      at_++;
    }
    return trim(s);
  }
  void skip_block() {  // at '{'
    int depth = 0;
    do {
      depth += (text_[at_] == '{') - (text_[at_] == '}');
      line_ += text_[at_++] == '\n';
    } while (depth > 0 && at_ < text_.size());
  }

  void parse_directive() {
    std::string head;
    for (const char* line_directive : {".version", ".target", ".address_size", ".file"})
      if (text_.compare(at_, std::strlen(line_directive), line_directive) == 0) {
        read_until("\n");
        return;
      }
    head = read_until(";{(");
    if (at_ >= text_.size()) return;
    if (const size_t entry = head.find(".entry"); entry != std::string::npos) {
      parse_kernel(trim(head.substr(entry + 6)));
    } else if (head.find(".func") != std::string::npos) {  // a call to it is an unknown instruction
      read_until("{;");
      if (text_[at_] == '{')
        skip_block();
      else
        at_++;
    } else if (text_[at_] == ';') {
      at_++;
      const size_t bracket = head.find('[');
      if (head.find(".shared") != std::string::npos && bracket != std::string::npos) {
        const std::string name = head.substr(0, bracket);
        shared_symbols_.push_back(name.substr(name.find_last_of(" \t") + 1));
      }
    } else {
      fail("unsupported directive: " + head);
    }
  }

  void parse_kernel(const std::string& name) {
    kernel_ = &module_.kernels[name];
    kernel_->name = name;
    registers_.clear();
    labels_.clear();
    parameters_.clear();
    scopes_.assign(1, {});
    unique_ = 0;
    if (text_[at_] == '(') {
      at_++;
      for (const std::string& declaration : split_operands(read_until(")"))) parse_parameter(declaration);
      at_++;
    }
    read_until("{");  // .maxntid and the like
    parse_body();
    resolve_labels();
  }

  void parse_parameter(const std::string& declaration) {  // .param [.align n] .type name[count]
    std::istringstream words(declaration);
    std::string word, name;
    size_t align = 0, bytes = 0;
    while (words >> word) {
      if (word == ".align")
        words >> align;
      else if (word == ".ptr" || word == ".param" || word == ".global")
        continue;
      else if (word[0] == '.')
        bytes = type_bytes(word);
      else
        name = word;
    }
    if (const size_t bracket = name.find('['); bracket != std::string::npos) {
      bytes *= size_t(std::atoi(name.c_str() + bracket + 1));
      name = name.substr(0, bracket);
    } else {
      align = bytes;  // for a pointer, .align is that of what it points to
    }
    align = std::max<size_t>(align, 1);
    const size_t offset = (kernel_->parameter_bytes + align - 1) / align * align;
    parameters_[name] = offset;
    kernel_->parameters.push_back({offset, bytes});
    kernel_->parameter_bytes = offset + bytes;
  }

  void parse_body() {
    int depth = 0;
    for (;;) {
      skip_space();
      if (at_ >= text_.size()) fail("unexpected end of file in kernel " + kernel_->name);
      if (text_[at_] == '{') {
        at_++;
        if (depth++ > 0) scopes_.push_back({});
      } else if (text_[at_] == '}') {
        at_++;
        if (--depth == 0) return;
        scopes_.pop_back();
      } else if (const size_t colon = label_end(); colon != std::string::npos) {
        labels_[text_.substr(at_, colon - at_)] = int(kernel_->code.size());
        at_ = colon + 1;
      } else {
        statement_line_ = line_;
        const std::string statement = read_until(";");
        at_++;
        parse_statement(statement);
      }
    }
  }

  size_t label_end() const {
    size_t i = at_;
    while (i < text_.size() && is_identifier(text_[i])) i++;
    const bool label = i > at_ && text_[i] == ':' && text_[i + 1] != ':';
    return label ? i : std::string::npos;
  }

  void parse_statement(const std::string& statement) {
    if (statement.rfind(".reg", 0) == 0)
      parse_registers(statement);
    else if (statement[0] == '.' && statement.rfind(".pragma", 0) != 0 && statement.rfind(".loc", 0) != 0)
      fail("unsupported directive: " + statement);
    else if (statement[0] != '.')
      parse_instruction(statement);
  }

  int new_slot(SlotClass c) {
    return c == SlotClass::k32   ? kernel_->slots_32++
           : c == SlotClass::k64 ? kernel_->slots_64++
                                 : kernel_->slots_predicate++;
  }

  void parse_registers(const std::string& statement) {  // .reg .type %name<count>, %name
    std::istringstream words(statement);
    std::string reg, type, rest;
    words >> reg >> type;
    std::getline(words, rest);
    const SlotClass c = type == ".pred"                         ? SlotClass::kPredicate
                        : type.find("64") != std::string::npos  ? SlotClass::k64
                        : type.find("128") != std::string::npos ? (fail("128-bit register"), SlotClass::k32)
                                                                : SlotClass::k32;
    for (const std::string& item : split_operands(rest)) {
      const size_t angle = item.find('<');
      if (angle == std::string::npos) {
        declare(item, c);
      } else {
        const int count = std::atoi(item.c_str() + angle + 1);
        for (int i = 0; i < count; i++) declare(item.substr(0, angle) + std::to_string(i), c);
      }
    }
  }

  struct Register {
    SlotClass c;
    int slot;
  };

  // The names of an inline-asm block { ... } are its own.
  void declare(const std::string& name, SlotClass c) {
    std::string unique = name;
    if (scopes_.size() > 1) {
      unique = name + "@" + std::to_string(unique_++);
      scopes_.back()[name] = unique;
    }
    registers_[unique] = {c, new_slot(c)};
  }

  int slot(const std::string& operand, SlotClass c) {
    std::string name = operand;
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope)
      if (const auto found = scope->find(operand); found != scope->end()) {
        name = found->second;
        break;
      }
    if (const auto found = registers_.find(name); found != registers_.end()) {
      if (found->second.c != c) fail("register " + operand + " has another width than the instruction expects");
      return found->second.slot;
    }
    if (name[0] == '%') {
      if (c != SlotClass::k32) fail("special register " + name + " is read as 32 bits only");
      const int special = new_slot(c);
      registers_[name] = {c, special};
      kernel_->special_registers[name] = special;
      return special;
    }
    return constant(name, c);
  }

  int constant(const std::string& text, SlotClass c) {
    uint64_t value = 0;
    if (text.size() > 2 && text[0] == '0' && std::strchr("fFdD", text[1]))
      value = std::strtoull(text.c_str() + 2, nullptr, 16);
    else if (text[0] == '-')
      value = uint64_t(std::strtoll(text.c_str(), nullptr, 0));
    else if (std::isdigit(static_cast<unsigned char>(text[0])))
      value = std::strtoull(text.c_str(), nullptr, 0);
    else if (std::find(shared_symbols_.begin(), shared_symbols_.end(), text) != shared_symbols_.end())
      value = kSharedWindow;
    else if (const auto parameter = parameters_.find(text); parameter != parameters_.end())
      value = parameter->second;
    else
      fail("unknown symbol " + text);
    const std::string key = "#" + std::to_string(int(c)) + ":" + std::to_string(value);
    if (const auto found = registers_.find(key); found != registers_.end()) return found->second.slot;
    const int made = new_slot(c);
    registers_[key] = {c, made};
    switch (c) {
      case SlotClass::k32:
        kernel_->constants_32.push_back({made, uint32_t(value)});
        break;
      case SlotClass::k64:
        kernel_->constants_64.push_back({made, value});
        break;
      case SlotClass::kPredicate:
        kernel_->constants_predicate.push_back({made, value != 0 ? ~LaneMask(0) : 0});
        break;
    }
    return made;
  }

  void parse_instruction(const std::string& statement) {
    Instruction instruction;
    instruction.line = statement_line_;
    instruction.text = statement;
    std::fill(std::begin(instruction.operand), std::end(instruction.operand), -1);
    std::string rest = statement;
    if (rest[0] == '@') {
      const size_t space = rest.find_first_of(" \t");
      std::string guard = rest.substr(1, space - 1);
      instruction.guard_negated = guard[0] == '!';
      if (instruction.guard_negated) guard = guard.substr(1);
      instruction.guard = slot(guard, SlotClass::kPredicate);
      rest = trim(rest.substr(space));
    }
    const size_t space = rest.find_first_of(" \t");
    const std::vector<std::string> operands = split_operands(space == std::string::npos ? "" : rest.substr(space));
    const Opcode& opcode = find_opcode(rest.substr(0, space), operands);
    instruction.handler = opcode.handler;
    instruction.flow = opcode.flow;
    kernel_->has_mbarriers |= rest.rfind("mbarrier.", 0) == 0;
    if (opcode.shared_access_bytes != 0)
      kernel_->shared_granule = std::min(kernel_->shared_granule, opcode.shared_access_bytes);
    bool optional = false;
    size_t next = 0;
    for (const char kind : opcode.signature) {
      if (kind == '?') {
        optional = true;
        continue;
      }
      if (next == operands.size() && optional) break;
      if (next == operands.size()) fail("too few operands: " + statement);
      parse_operand(instruction, kind, operands[next++]);
    }
    if (next != operands.size()) fail("too many operands: " + statement);
    kernel_->code.push_back(std::move(instruction));
  }

  const Opcode& find_opcode(std::string name, const std::vector<std::string>& operands) {
    if ((name.rfind("ld.", 0) == 0 || name.rfind("st.", 0) == 0) && operands.size() == 2 &&
        type_bytes(name.substr(name.rfind('.'))) < 8) {
      const auto found = registers_.find(operands[name[0] == 'l' ? 0 : 1]);
      if (found != registers_.end() && found->second.c == SlotClass::k64) name += kWideRegister;
    }
    const auto found = opcodes().find(name);
    if (found == opcodes().end()) fail("unknown instruction " + name);
    return found->second;
  }

  void push(Instruction& instruction, int operand_slot) {
    if (instruction.count == Instruction::kOperands) fail("too many operands: " + instruction.text);
    instruction.operand[instruction.count++] = operand_slot;
  }

  void parse_operand(Instruction& instruction, char kind, const std::string& operand) {
    switch (kind) {
      case 'r':
        return push(instruction, slot(operand, SlotClass::k32));
      case 'd':
        return push(instruction, slot(operand, SlotClass::k64));
      case 'p': {
        const bool negated = operand[0] == '!';
        if (negated) instruction.negated |= 1u << instruction.count;
        return push(instruction, slot(negated ? operand.substr(1) : operand, SlotClass::kPredicate));
      }
      case 'V':
      case 'W':
      case 'X': {
        if (kind == 'X') kind = operand[0] == '{' ? 'V' : 'W';
        const std::string inner = operand[0] == '{' ? operand.substr(1, operand.size() - 2) : operand;
        for (const std::string& item : split_operands(inner))
          push(instruction, slot(item, kind == 'V' ? SlotClass::k32 : SlotClass::k64));
        return;
      }
      case 'M':
        for (const std::string& item : split_operands(operand.substr(1, operand.size() - 2)))
          instruction.matrix.push_back(slot(item, SlotClass::k32));
        return;
      case '_':
        if (operand != "_") fail("a state of an mbarrier is not supported: " + instruction.text);
        return;
      case 't': {
        const size_t bar = operand.find('|');
        push(instruction, slot(trim(operand.substr(0, bar)), SlotClass::k32));
        if (bar != std::string::npos)
          instruction.result_predicate = slot(trim(operand.substr(bar + 1)), SlotClass::kPredicate);
        return;
      }
      case 'i':
        instruction.immediate = std::strtoll(operand.c_str(), nullptr, 0);
        return;
      case 'l':
        instruction.target = int(pending_labels_.size());
        pending_labels_.push_back(operand);
        return;
      case 's':
      case 'g':
      case 'a':
        return parse_address(instruction, kind, operand);
      default:
        fail(std::string("opcode table: unknown operand kind ") + kind);
    }
  }

  void parse_address(Instruction& instruction, char kind, const std::string& operand) {
    if (operand[0] != '[') fail("expected an address: " + instruction.text);
    std::string base = trim(operand.substr(1, operand.size() - 2));
    int64_t offset = 0;
    if (const size_t sign = base.find_first_of("+-", 1); sign != std::string::npos) {  // register+8, register+-8
      offset = std::strtoll(base.c_str() + sign + (base[sign] == '+'), nullptr, 0);
      base = trim(base.substr(0, sign));
    }
    // cp.async has two addresses; an offset could belong to either, and nvcc writes none there
    if (offset != 0 && instruction.offset != 0) fail("two offset addresses: " + instruction.text);
    if (offset != 0 && instruction.text.find("cp.async") != std::string::npos)
      fail("cp.async with an offset: " + instruction.text);
    instruction.offset += offset;
    push(instruction, slot(base, kind == 's' ? SlotClass::k32 : SlotClass::k64));
  }

  void resolve_labels() {
    for (Instruction& instruction : kernel_->code)
      if (instruction.flow == Flow::kBranch) {
        const auto found = labels_.find(pending_labels_[size_t(instruction.target)]);
        if (found == labels_.end()) fail("unknown label in " + instruction.text);
        instruction.target = found->second;
      }
    pending_labels_.clear();
  }

  std::string text_;
  size_t at_ = 0;
  int line_ = 1, statement_line_ = 1;
  Module module_;
  std::vector<std::string> shared_symbols_;
  // of the kernel being parsed
  Kernel* kernel_ = nullptr;
  std::map<std::string, Register> registers_;
  std::map<std::string, int> labels_;
  std::vector<std::string> pending_labels_;
  std::map<std::string, size_t> parameters_;
  std::vector<std::map<std::string, std::string>> scopes_;
  int unique_ = 0;
};

}  // namespace

std::shared_ptr<const Module> load_module(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw Error("cannot open " + path);
  std::ostringstream text;
  text << file.rdbuf();
  return std::make_shared<const Module>(Parser(text.str()).parse());
}

}  // namespace simt::ptx
