"""What every command line needs, without torch: errors, whole files, console, interrupts, arguments, safe YAML, git.

Nothing in here imports torch or any other room of the project; the rooms above and the harness import from here.
"""
