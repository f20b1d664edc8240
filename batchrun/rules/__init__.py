"""The rules: values and `now` in, values out. Nothing here waits, logs, reads a clock or rolls dice."""
