"""The command line: `condconv VERB …`, one file for each verb."""
