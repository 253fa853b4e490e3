"""The documents beside an engine in, a page and a report in plain words out."""
