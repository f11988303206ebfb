"""What is to be solved: data sets and environments."""
