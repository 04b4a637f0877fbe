"""What differs between providers: named profiles as data, and readers from raw usage objects to one scale."""

from farebox.dialects.profile import AuthHeader, Profile, Reasoning, StreamOptions
from farebox.dialects.profiles import PROFILES

__all__ = ["PROFILES", "AuthHeader", "Profile", "Reasoning", "StreamOptions"]
