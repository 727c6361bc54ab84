// The cleave binary.
#include "cli/command.h"

int main(int argc, char** argv) { return cleave::run_command(argc, argv); }
