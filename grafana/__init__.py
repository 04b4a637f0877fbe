"""The Grafana side of farebox: a dashboard generated from code, alert rules, and their tests.

`queries` writes PromQL, `panels` writes Grafana's JSON, `dashboard` says what stands where and why. The result,
`farebox-overview.json`, is committed, so that Grafana can be given the file alone; `make dashboard` writes it anew.
"""
