"""Stored objects and whose they are: files, responses, conversations, batches, threads and the like.

All keys share a provider's credential, so the provider would show any of its objects to any of them.
What farebox saw being made answers to the key it was made with; nothing else answers to anybody, but
to keys that may share. `places` reads paths, `references` request bodies, `answers` what a provider
says it made; `registry` remembers. Who is refused, and when, is `proxy.ownership`'s.
"""
