"""What the scripts of the project call: train, predict, inspect, check, features. Importing it loads nothing."""
