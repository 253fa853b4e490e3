"""What was found, as documents that are read again: measurements, gates, history."""
