"""Commands of `hanflow`, a module each: `add(commands)` gives one its parser."""
