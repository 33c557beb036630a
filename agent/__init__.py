"""ftloop's host program: the loop, its records, and what it is joined from."""
