# Builds libintfa_trt.so, the TensorRT plugin. Links the same core as libintfa_ort.so and nothing of TensorRT, whose
# libraries it finds in the process that loads it.
#   -DTENSORRT_ROOT=...  use NVIDIA's headers instead of plugin/adapters/trt_interface.h
set(TENSORRT_ROOT "" CACHE PATH "folder of a TensorRT release with include/NvInferRuntime.h; not needed")
set(INTFA_TRT_SOURCES
  plugin/adapters/node.cpp
  plugin/adapters/trt_creator.cpp
  plugin/adapters/trt_fields.cpp
  plugin/adapters/trt_host.cpp
  plugin/adapters/trt_plugin.cpp)
list(TRANSFORM INTFA_TRT_SOURCES PREPEND ${PROJECT_SOURCE_DIR}/)

# What a target needs that compiles these sources.
add_library(intfa_trt_options INTERFACE)
target_include_directories(intfa_trt_options INTERFACE ${PROJECT_SOURCE_DIR}/plugin)
target_compile_definitions(intfa_trt_options INTERFACE INTFA_VERSION="${PROJECT_VERSION}")
target_compile_options(intfa_trt_options INTERFACE -Wall -Wextra)
target_link_libraries(intfa_trt_options INTERFACE Threads::Threads ${CMAKE_DL_LIBS})
if(TENSORRT_ROOT)
  if(NOT EXISTS ${TENSORRT_ROOT}/include/NvInferRuntime.h)
    message(FATAL_ERROR "TensorRT headers not found in '${TENSORRT_ROOT}/include'. Pass -DTENSORRT_ROOT=<folder of a "
                        "TensorRT release, 10.0 or newer>, or leave it away: the build does not need them.")
  endif()
  find_path(CUDA_RUNTIME_INCLUDE_DIR cuda_runtime_api.h HINTS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda
            PATH_SUFFIXES include)
  if(NOT CUDA_RUNTIME_INCLUDE_DIR)
    message(FATAL_ERROR "TensorRT's headers need cuda_runtime_api.h, which was not found. Pass "
                        "-DCUDA_RUNTIME_INCLUDE_DIR=<CUDA toolkit>/include, or leave TENSORRT_ROOT away.")
  endif()
  message(STATUS "TensorRT headers: ${TENSORRT_ROOT}/include")
  target_include_directories(intfa_trt_options SYSTEM INTERFACE ${TENSORRT_ROOT}/include ${CUDA_RUNTIME_INCLUDE_DIR})
  target_compile_definitions(intfa_trt_options INTERFACE INTFA_TENSORRT_HEADERS)
endif()

add_library(intfa_trt SHARED ${INTFA_TRT_SOURCES})
target_link_libraries(intfa_trt PRIVATE intfa_core intfa_trt_options)
set(trt_exports ${PROJECT_SOURCE_DIR}/cmake/intfa_trt.map)
# nodelete: TensorRT may hold the creator for as long as the process lives
target_link_options(intfa_trt PRIVATE -Wl,--version-script=${trt_exports} -Wl,--no-undefined -Wl,-z,relro,-z,now,-z,nodelete)
set_target_properties(intfa_trt PROPERTIES LINK_DEPENDS ${trt_exports})
install(TARGETS intfa_trt LIBRARY DESTINATION intfa_onnx/lib)
