"""The checkpoint, and the only room that opens it: what is wanted, what has been paid, and what happened."""
