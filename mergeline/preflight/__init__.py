"""What a merge would read, write and cost, and what would stop it: looked at before a byte is written."""
