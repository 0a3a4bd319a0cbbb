"""mmcl against what people use today, in one run: the command `mmcl bench`."""
