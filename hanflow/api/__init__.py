"""The functions and classes behind the public names of `hanflow`, thin over the packages that do the work."""
