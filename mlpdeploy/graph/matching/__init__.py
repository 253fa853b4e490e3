"""What several rules look for in a graph."""
