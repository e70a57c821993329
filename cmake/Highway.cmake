# Defines the target intfa_highway (portable SIMD, at least 1.2). Tried in this order:
#   1. -DHIGHWAY_SOURCE_DIR=..., an unpacked source archive
#   2. a static system install; a shared one would become a run-time dependency of our library
#   3. the source archive of this machine's own Debian archive, unpacked into the build folder
# Of the sources only the run-time detection of the processor is compiled; everything else of Highway is headers.
include(DebianArchive)
set(HIGHWAY_SOURCE_DIR "" CACHE PATH "unpacked Highway source, 1.2 or newer")
add_library(intfa_highway INTERFACE)
if(NOT HIGHWAY_SOURCE_DIR)
  find_package(hwy 1.2 CONFIG QUIET)
  if(TARGET hwy::hwy)
    get_target_property(hwy_type hwy::hwy TYPE)
    if(NOT hwy_type STREQUAL STATIC_LIBRARY)
      message(STATUS "Highway: the system's is shared, not used")
      set(hwy_FOUND FALSE)
    endif()
  endif()
  if(hwy_FOUND)
    message(STATUS "Highway: system ${hwy_VERSION}")
    target_link_libraries(intfa_highway INTERFACE hwy::hwy)
    return()
  endif()
  intfa_debian_file(hwy_archive pool/main/h/highway/highway_1.2.0.orig.tar.gz
                    7e0be78b8318e8bdbf6fa545d2ecb4c90f947df03f7aadc42c1967f019e63343)
  if(hwy_archive)
    if(NOT EXISTS ${CMAKE_BINARY_DIR}/_highway/highway-1.2.0)
      file(ARCHIVE_EXTRACT INPUT ${hwy_archive} DESTINATION ${CMAKE_BINARY_DIR}/_highway)
    endif()
    set(HIGHWAY_SOURCE_DIR ${CMAKE_BINARY_DIR}/_highway/highway-1.2.0)
  endif()
endif()
if(NOT EXISTS ${HIGHWAY_SOURCE_DIR}/hwy/highway.h)
  message(FATAL_ERROR "Highway not found in '${HIGHWAY_SOURCE_DIR}'. Unpack its source archive (1.2 or newer) and pass "
                      "-DHIGHWAY_SOURCE_DIR=<folder with hwy/highway.h>.")
endif()
message(STATUS "Highway: ${HIGHWAY_SOURCE_DIR}")
add_library(hwy_runtime STATIC ${HIGHWAY_SOURCE_DIR}/hwy/abort.cc ${HIGHWAY_SOURCE_DIR}/hwy/per_target.cc
                               ${HIGHWAY_SOURCE_DIR}/hwy/targets.cc)
target_include_directories(hwy_runtime SYSTEM PUBLIC ${HIGHWAY_SOURCE_DIR})
target_compile_definitions(hwy_runtime PUBLIC HWY_STATIC_DEFINE)
set_target_properties(hwy_runtime PROPERTIES POSITION_INDEPENDENT_CODE ON)
target_link_libraries(intfa_highway INTERFACE hwy_runtime)
