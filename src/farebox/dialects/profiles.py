"""The named profiles, as data, from the providers' API references and recorded bodies.

A name is what a config calls `dialect`. A profile that differs in nothing from `openai` is listed
all the same, so that a config can say what it means and the row records it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from farebox.dialects.profile import Profile

_ALL = (
    Profile(name="openai"),
    # Older api-versions, and requests with data_sources, reject stream_options.
    Profile(name="azure", auth_header="api-key", stream_options="learn"),
    Profile(name="anthropic", family="anthropic", auth_header="x-api-key"),
    # The compatible endpoint leaves thinking out of completion_tokens and puts it into the total.
    Profile(name="google", hides_thinking=True),
    Profile(name="vertex", hides_thinking=True),
    # 422 (extra_forbidden) on include_usage; the finish chunk carries usage unasked.
    Profile(name="mistral", stream_options="skip"),
    # Usage comes in x_groq on the finish chunk and, if asked for, in a frame of its own: the same numbers.
    Profile(name="groq"),
    Profile(name="deepseek"),
    Profile(name="xai"),
    Profile(name="together", stream_options="learn"),
    Profile(name="fireworks"),
    Profile(name="openrouter", stream_options="skip"),
    # Reasoning and citation tokens are billed beside the output and are in no total.
    Profile(name="perplexity", stream_options="skip", reasoning="additive"),
    Profile(name="cerebras"),
    # The compatible endpoint rejects stream_options.
    Profile(name="cohere", stream_options="skip"),
    Profile(name="digitalocean"),
    Profile(name="nim"),
    # What happens depends on the backend the router picked.
    Profile(name="huggingface", stream_options="learn"),
    Profile(name="hf-router-hf-inference", stream_options="learn"),
    # Usage rides inside choices[0] on the finish chunk.
    Profile(name="moonshot"),
    Profile(name="copilot", stream_options="learn"),
    # Some external models reject stream_options.
    Profile(name="databricks", stream_options="learn"),
    Profile(name="vllm", usage_per_choice=True),
    Profile(name="sglang", usage_per_choice=True),
    Profile(name="llamacpp", auth_header="none"),
    Profile(name="ollama", auth_header="none"),
    Profile(name="ollama-cloud"),
    Profile(name="tgi"),
    Profile(name="lmstudio", auth_header="none"),
    Profile(name="demo", auth_header="none"),
    Profile(name="bedrock"),
    Profile(name="hyperbolic"),
    Profile(name="nebius"),
    Profile(name="novita"),
    Profile(name="portkey", stream_options="learn"),
    Profile(name="sambanova"),
    Profile(name="voyage"),
    Profile(name="watsonx", stream_options="learn"),
    Profile(name="zai", stream_options="learn"),
)

PROFILES: Mapping[str, Profile] = MappingProxyType({profile.name: profile for profile in _ALL})
"""Every named profile by its name."""
