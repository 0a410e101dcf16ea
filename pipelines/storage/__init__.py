"""Files on this machine and on other filesystems: paths, copies of folders, and writing as a whole."""
