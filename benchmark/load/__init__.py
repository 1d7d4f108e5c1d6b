"""What harness_load.py is made of: cells that only wait, and the trials that they go through."""
