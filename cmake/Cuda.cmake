# Sets INTFA_HAVE_CUDA and, where it is true, enables the language CUDA.
#   INTFA_CUDA=AUTO  CUDA kernels if the checkout has them and an nvcc is found; otherwise a CPU-only library
#   INTFA_CUDA=ON    as AUTO, but a missing nvcc is an error
#   INTFA_CUDA=OFF   CPU only; no CUDA header or tool is looked for
# nvcc is looked for in -DCMAKE_CUDA_COMPILER and $CUDACXX, in PATH, in CUDA toolkits, and in the Python package nvidia-cuda-nvcc;
# with $INTFA_NVCC=pip, which makes pip install that package for the build, there first.
set(INTFA_CUDA AUTO CACHE STRING "build the CUDA kernels: AUTO, ON or OFF")
set_property(CACHE INTFA_CUDA PROPERTY STRINGS AUTO ON OFF)
set(INTFA_CUDA_ARCHITECTURES "80;86;89;90a;100;120" CACHE STRING "GPU architectures; the last one is also kept as PTX")
set(INTFA_HAVE_CUDA FALSE)

if(NOT INTFA_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "INTFA_CUDA=${INTFA_CUDA} is unknown (supported: AUTO, ON, OFF)")
endif()
if(INTFA_CUDA STREQUAL "OFF")
  message(STATUS "CUDA: off (INTFA_CUDA=OFF)")
  return()
endif()
if(NOT EXISTS ${PROJECT_SOURCE_DIR}/plugin/cuda/CMakeLists.txt)
  if(INTFA_CUDA STREQUAL "ON")
    message(FATAL_ERROR "INTFA_CUDA=ON, but this checkout has no plugin/cuda/CMakeLists.txt. Use INTFA_CUDA=OFF.")
  endif()
  message(STATUS "CUDA: off (this checkout has no plugin/cuda/CMakeLists.txt)")
  return()
endif()

if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  file(GLOB nvcc_toolkits LIST_DIRECTORIES TRUE /usr/local/cuda /usr/local/cuda-*)
  list(SORT nvcc_toolkits COMPARE NATURAL ORDER DESCENDING)
  find_package(Python3 COMPONENTS Interpreter QUIET)
  if(Python3_FOUND)
    # nvidia-cuda-nvcc puts nvcc into site-packages/nvidia/cu<major>/bin (13) or nvidia/cuda_nvcc/bin (12).
    execute_process(COMMAND ${Python3_EXECUTABLE} -c
      "import glob, importlib.util as u; s = u.find_spec('nvidia'); print(';'.join(p for d in (s.submodule_search_locations if s else []) for p in sorted(glob.glob(d + '/cu*'))))"
      OUTPUT_VARIABLE nvcc_wheels OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
  # not NO_CACHE: the language reads the same variable
  if("$ENV{INTFA_NVCC}" STREQUAL "pip")
    find_program(CMAKE_CUDA_COMPILER nvcc PATHS ${nvcc_wheels} PATH_SUFFIXES bin NO_DEFAULT_PATH)
  endif()
  find_program(CMAKE_CUDA_COMPILER nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS ${nvcc_toolkits} ${nvcc_wheels} PATH_SUFFIXES bin)
endif()
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  unset(CMAKE_CUDA_COMPILER CACHE)
  if(INTFA_CUDA STREQUAL "ON")
    message(FATAL_ERROR "INTFA_CUDA=ON, but nvcc is in neither PATH, a CUDA toolkit nor the Python package nvidia-cuda-nvcc. Install "
                        "one of them (pip install nvidia-cuda-nvcc nvidia-cuda-crt nvidia-cuda-cccl nvidia-cuda-runtime nvidia-nvvm), "
                        "pass -DCMAKE_CUDA_COMPILER=..., or use INTFA_CUDA=OFF.")
  endif()
  message(STATUS "CUDA: off (no nvcc found)")
  return()
endif()

list(TRANSFORM INTFA_CUDA_ARCHITECTURES APPEND -real OUTPUT_VARIABLE CMAKE_CUDA_ARCHITECTURES)
list(GET INTFA_CUDA_ARCHITECTURES -1 _last)
list(APPEND CMAKE_CUDA_ARCHITECTURES ${_last}-virtual)
enable_language(CUDA)
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION) # CMake 3.25 does not know yet that nvcc 12 has C++20
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
endif()
set(INTFA_HAVE_CUDA TRUE)
message(STATUS "CUDA: ${CMAKE_CUDA_COMPILER} ${CMAKE_CUDA_COMPILER_VERSION} for ${CMAKE_CUDA_ARCHITECTURES}")
