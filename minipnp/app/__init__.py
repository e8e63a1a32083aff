"""The command line: the options, one file for each command, and what their runs say and leave behind."""
