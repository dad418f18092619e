"""What runs inside dom0: each module is a job, a list of checks.  Needs Python's standard library and this project, no pytest."""
