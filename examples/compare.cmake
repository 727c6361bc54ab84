# Runs PROGRAM with ARGUMENTS and compares what it prints with the file EXPECTED.
separate_arguments(ARGUMENTS)
execute_process(COMMAND ${PROGRAM} ${ARGUMENTS} OUTPUT_VARIABLE output ERROR_VARIABLE errors
  RESULT_VARIABLE status)
if(NOT status EQUAL 0)
  message(FATAL_ERROR "${PROGRAM} ended with ${status}: ${errors}")
endif()
if(WRITE)
  file(WRITE ${EXPECTED} "${output}")
endif()
file(READ ${EXPECTED} expected)
if(NOT output STREQUAL expected)
  message(FATAL_ERROR "${PROGRAM} ${ARGUMENTS} printed\n${output}\nnot what ${EXPECTED} holds; "
    "if the new output is right, run this again with -DWRITE=ON")
endif()
