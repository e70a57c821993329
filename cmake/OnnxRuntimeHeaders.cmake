# Sets ORT_INCLUDE_DIR, the folder that holds onnxruntime_cxx_api.h. Tried in this order:
#   1. -DORT_INCLUDE_DIR=...
#   2. a system install (libonnxruntime-dev)
#   3. Debian 13's header package from this machine's own Debian archive, unpacked into the build folder
# Any version from 1.18 on will do: the library asks for API 18 whatever the headers offer.
include(DebianArchive)
set(ORT_INCLUDE_DIR "" CACHE PATH "folder with onnxruntime_cxx_api.h")
if(NOT ORT_INCLUDE_DIR)
  find_path(ort_system_dir onnxruntime_cxx_api.h PATH_SUFFIXES onnxruntime onnxruntime/core/session NO_CACHE)
  if(ort_system_dir)
    set(ORT_INCLUDE_DIR ${ort_system_dir})
  else()
    intfa_debian_file(ort_deb pool/main/o/onnxruntime/libonnxruntime-dev_1.21.0+dfsg-1_amd64.deb
                      14f7d959d5deacbcf1504830d4189f91fc67382b399ed9ae9d3aa9c4050ced08)
    if(ort_deb)
      set(ort_dir ${CMAKE_BINARY_DIR}/_onnxruntime)
      if(NOT EXISTS ${ort_dir}/root)
        file(ARCHIVE_EXTRACT INPUT ${ort_deb} DESTINATION ${ort_dir}/ar)
        file(GLOB ort_data ${ort_dir}/ar/data.tar.*)
        file(ARCHIVE_EXTRACT INPUT ${ort_data} DESTINATION ${ort_dir}/root)
      endif()
      set(ORT_INCLUDE_DIR ${ort_dir}/root/usr/include/onnxruntime)
    endif()
  endif()
endif()
if(NOT EXISTS ${ORT_INCLUDE_DIR}/onnxruntime_cxx_api.h)
  message(FATAL_ERROR "ONNX Runtime headers not found in '${ORT_INCLUDE_DIR}'. Install libonnxruntime-dev, or unpack an ONNX "
                      "Runtime release (1.18 or newer) and pass -DORT_INCLUDE_DIR=<folder with onnxruntime_cxx_api.h>.")
endif()
message(STATUS "ONNX Runtime headers: ${ORT_INCLUDE_DIR}")
add_library(onnxruntime_headers INTERFACE)
target_include_directories(onnxruntime_headers SYSTEM INTERFACE ${ORT_INCLUDE_DIR})
