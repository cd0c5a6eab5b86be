"""`tune`: a search over any options of a task, each trial a real run at a stated budget."""
