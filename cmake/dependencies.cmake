# Finds what Cleave links and what it can use, and prints both as one table.
# Required ones stop the configuration; an optional one's line says what its absence costs.

find_package(fmt REQUIRED)
find_package(Boost 1.74 REQUIRED)  # Boost.Graph, headers only
find_package(nlohmann_json 3.11 REQUIRED)
find_package(CLI11 REQUIRED)
find_path(TOMLPLUSPLUS_INCLUDE_DIR toml++/toml.h REQUIRED)  # headers only
find_package(Threads REQUIRED)
if(NOT DEFINED BLA_VENDOR)
  set(BLA_VENDOR OpenBLAS)  # the reference BLAS is thirty times slower
endif()
find_package(BLAS REQUIRED)
find_path(CBLAS_INCLUDE_DIR cblas.h
  PATH_SUFFIXES openblas openblas-pthread x86_64-linux-gnu/openblas-pthread REQUIRED)
# Checksums of checkpoints; a header alone, nothing is linked. 0.8 is the first with a fixed XXH128.
find_path(XXHASH_INCLUDE_DIR xxhash.h REQUIRED)
if(CLEAVE_TESTS)
  find_package(GTest REQUIRED)
endif()

find_program(CLEAVE_DOT dot)
find_path(CBC_INCLUDE_DIR Cbc_C_Interface.h PATH_SUFFIXES coin)
find_library(CBC_LIBRARY CbcSolver)
if(CBC_INCLUDE_DIR AND CBC_LIBRARY)
  set(CBC_FOUND TRUE)
  # An oracle of the planner's solver, for tests only; without it its test skips itself.
  add_library(cleave_cbc INTERFACE)
  target_compile_definitions(cleave_cbc INTERFACE CLEAVE_HAS_CBC)
  target_include_directories(cleave_cbc SYSTEM INTERFACE ${CBC_INCLUDE_DIR})
  target_link_libraries(cleave_cbc INTERFACE ${CBC_LIBRARY})
endif()
set(CLEAVE_USE_CUDA FALSE)
if(NOT CLEAVE_CUDA STREQUAL OFF)
  find_package(CUDAToolkit 13 QUIET)
  if(CUDAToolkit_FOUND)
    set(CLEAVE_USE_CUDA TRUE)
  elseif(CLEAVE_CUDA STREQUAL ON)
    message(FATAL_ERROR "CLEAVE_CUDA is ON, and no CUDA toolkit 13 was found")
  endif()
endif()
if(CLEAVE_USE_CUDA)
  # cuDNN and the headers of its frontend lie where the toolkit, pip or scripts/setup.sh put them.
  set(user_cache $ENV{XDG_CACHE_HOME})
  if(NOT user_cache)
    set(user_cache $ENV{HOME}/.cache)
  endif()
  file(GLOB python_packages $ENV{HOME}/.local/lib/python3*/site-packages
    /usr/local/lib/python3*/dist-packages /usr/local/lib/python3*/site-packages
    /usr/lib/python3/dist-packages)
  find_program(PYTHON3 python3)
  if(PYTHON3)
    execute_process(COMMAND ${PYTHON3} -c "import sysconfig; print(sysconfig.get_path('purelib'))"
      OUTPUT_VARIABLE purelib OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    list(PREPEND python_packages ${purelib})
  endif()
  list(TRANSFORM python_packages APPEND /nvidia/cudnn OUTPUT_VARIABLE cudnn_packages)
  find_path(CUDNN_INCLUDE_DIR cudnn.h HINTS ${CUDAToolkit_INCLUDE_DIRS} ${cudnn_packages}
    PATH_SUFFIXES include)
  find_library(CUDNN_LIBRARY NAMES cudnn libcudnn.so.9
    HINTS ${CUDAToolkit_LIBRARY_DIR} ${CUDAToolkit_LIBRARY_ROOT} ${cudnn_packages}
    PATH_SUFFIXES lib lib64)
  find_path(CUDNN_FRONTEND_INCLUDE_DIR cudnn_frontend.h
    HINTS ${user_cache}/cleave/gpu $ENV{HOME}/.local ${python_packages} PATH_SUFFIXES include)
  if(CUDNN_INCLUDE_DIR AND CUDNN_LIBRARY)
    file(STRINGS ${CUDNN_INCLUDE_DIR}/cudnn_version.h version REGEX "define CUDNN_[MP][A-Z]+ +[0-9]")
    string(REGEX REPLACE "[^0-9;]" "" CUDNN_VERSION "${version}")
    string(REPLACE ";" "." CUDNN_VERSION "${CUDNN_VERSION}")
    set(CUDNN_FOUND TRUE)
  endif()
  if(CUDNN_FOUND AND CUDNN_FRONTEND_INCLUDE_DIR)
    set(CLEAVE_USE_CUDNN TRUE)
  endif()
endif()
find_package(MPI QUIET COMPONENTS CXX)
find_package(ONNX QUIET)

# One line of the table: what was found in the variable `found` (a version, a path or TRUE), or
# what its absence costs.
function(cleave_row name found detail cost)
  string(LENGTH "${name}" length)
  math(EXPR padding "18 - ${length}")
  string(REPEAT " " ${padding} padding)
  if(found)
    message(STATUS "  ${name}${padding}found    ${detail}")
  else()
    message(STATUS "  ${name}${padding}missing  ${cost}")
  endif()
endfunction()

function(cleave_print_summary)
  if(CMAKE_CXX_COMPILER_LAUNCHER)
    set(launcher ", ccache")
  endif()
  message(STATUS "Cleave ${PROJECT_VERSION}, ${CMAKE_BUILD_TYPE}, "
    "${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}${launcher}")
  cleave_row("fmt" TRUE "${fmt_VERSION}" "")
  cleave_row("Boost.Graph" TRUE "${Boost_VERSION_STRING}" "")
  cleave_row("nlohmann/json" TRUE "${nlohmann_json_VERSION}" "")
  cleave_row("CLI11" TRUE "${CLI11_VERSION}" "")
  cleave_row("toml++" TRUE "${TOMLPLUSPLUS_INCLUDE_DIR}" "")
  cleave_row("xxHash" TRUE "${XXHASH_INCLUDE_DIR}" "")
  cleave_row("OpenBLAS" TRUE "${BLAS_LIBRARIES}" "")
  if(CLEAVE_TESTS)
    cleave_row("GoogleTest" TRUE "${GTest_VERSION}" "")
    cleave_row("CBC" "${CBC_FOUND}" "${CBC_LIBRARY}"
      "the solver is not tested against it")
  else()
    message(STATUS "  tests             off      -DCLEAVE_TESTS=ON builds them")
  endif()
  cleave_row("Graphviz dot" "${CLEAVE_DOT}" "${CLEAVE_DOT}" "DOT files are not tested against it")
  if(CLEAVE_CUDA STREQUAL OFF)
    message(STATUS "  CUDA toolkit      off      -DCLEAVE_CUDA=ON builds kernels for GPUs")
  else()
    cleave_row("CUDA toolkit" "${CLEAVE_USE_CUDA}" "${CUDAToolkit_VERSION}"
      "nothing runs on a GPU: devices are CPU threads")
  endif()
  if(CLEAVE_USE_CUDA)
    set(cost "attention of 16 bits runs on Cleave's own, slower kernels")
    cleave_row("cuDNN" "${CUDNN_FOUND}" "${CUDNN_VERSION}" "${cost}")
    cleave_row("cuDNN frontend" "${CUDNN_FRONTEND_INCLUDE_DIR}" "${CUDNN_FRONTEND_INCLUDE_DIR}"
      "${cost}: scripts/setup.sh gpu")
  endif()
  cleave_row("MPI" "${MPI_CXX_FOUND}"
    "${MPI_CXX_VERSION}, not used yet: one process runs all ranks" "one process runs all ranks")
  cleave_row("ONNX" "${ONNX_FOUND}" "not used yet: models are written in C++"
    "nothing is lost yet: models are written in C++")
endfunction()
