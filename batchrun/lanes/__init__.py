"""Ways to get answers, and the quota they share."""
