"""Running a network on arrays, stacks and many files."""
