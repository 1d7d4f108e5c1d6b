"""What every command line needs, without torch: errors, files, console, interrupts, arguments."""
