"""An adapter behind HTTP on this machine, and a page to try it."""
