"""Whether each stage computes what the network computes."""
