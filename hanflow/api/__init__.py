"""The functions and classes behind the public names of `hanflow`, thin over the rooms that do the work."""
