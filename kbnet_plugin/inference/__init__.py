"""Run networks on arrays, stacks and many files."""
