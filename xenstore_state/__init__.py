"""XenStore-State: the long-lived half.  It keeps the data and never parses a byte that a guest sent.

- `tree`, `watches`, `transactions`, `domains`   the data, in structures whose costs do not grow with what is unrelated
- `access`, `quotas`                             the permission rule and the quota arithmetic; Logic imports them from here
- `store`                                        all of it together
- `records`                                      applying the records Logic published, each one checked first
- `keeper`                                       the process: accepts, drains the journal, forks Logic and forks it again
"""
