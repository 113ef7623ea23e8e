"""Processes and files that survive a kill: atomic writing, unfinished work, parallel work, progress."""
