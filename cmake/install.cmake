# Installs the command, the libraries and their headers, so that find_package(cleave) gives
# cleave::graph, cleave::tracer, cleave::planner, ...: one library a folder.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/cleave)
foreach(folder ${CLEAVE_FOLDERS})
  if(TARGET cleave_${folder})
    set_target_properties(cleave_${folder} PROPERTIES EXPORT_NAME ${folder})
    install(TARGETS cleave_${folder} EXPORT cleave_targets)
    install(DIRECTORY ${folder} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/cleave
      FILES_MATCHING PATTERN "*.h" PATTERN "*.def")
  endif()
endforeach()
if(TARGET cleave)
  install(TARGETS cleave)
endif()
install(EXPORT cleave_targets NAMESPACE cleave:: DESTINATION ${package_dir})

configure_package_config_file(cmake/cleave-config.cmake.in
  ${CMAKE_BINARY_DIR}/cleave-config.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${CMAKE_BINARY_DIR}/cleave-config-version.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/cleave-config.cmake
  ${CMAKE_BINARY_DIR}/cleave-config-version.cmake DESTINATION ${package_dir})
