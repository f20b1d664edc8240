"""Words to values, values to exit codes."""
