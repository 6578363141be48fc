"""Settings of servers and clusters: which values are refused, and how strings are read."""

from __future__ import annotations

from typing import Any

import pytest

from vlroute.errors import SettingsError
from vlroute.inputs.media import Limits
from vlroute.serving.settings import ClusterSettings, ServerSettings, is_loopback

KEY = "a key for tests, long enough"


@pytest.mark.parametrize(("wrong", "match"), [
    ({"host": "0.0.0.0"}, "VLROUTE_API_KEYS"), ({"host": "example.org"}, "VLROUTE_API_KEYS"),
    ({"max_num_seqs": 0}, "max_num_seqs"), ({"api_keys": ("short",)}, "16 characters"),
    ({"retention_days": 0}, "retention_days"), ({"retention_days": 1e9}, "retention_days"),
    ({"max_per_address": 0}, "max_per_address"), ({"header_seconds": 0.0}, "header_seconds"),
    ({"body_seconds": -1.0}, "body_seconds"), ({"idle_seconds": 0.0}, "idle_seconds"),
    ({"write_seconds": float("nan")}, "write_seconds"), ({"grace_seconds": -1.0}, "grace_seconds"),
    ({"max_waiting": -1}, "max_waiting"), ({"port": 65_536}, "port must be"), ({"port": -1}, "port must be"),
    ({"max_total_body": 2**27}, "four times max_body"),
    ({"limits": Limits()}, "local_files"), ({"api_keys": ("é" * 20,)}, "ASCII"), ({"api_keys": (f"{KEY} ",)}, "ASCII"),
    ({"allowed_hosts": ("http://example.org",)}, "is no host"), ({"allowed_hosts": ("example.org/a",)}, "is no host"),
    ({"allowed_hosts": ("*.example.org",)}, "is no host"), ({"allowed_hosts": ("::1",)}, "is no host"),
])  # fmt: skip
def test_unsafe_and_impossible_settings_are_refused(wrong: dict[str, Any], match: str) -> None:
    with pytest.raises(SettingsError, match=match):
        ServerSettings(**wrong)


def test_loopback_addresses() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.0.1", "::1", "[::1]", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "localhost.evil.example", "")))
    assert ServerSettings(host="0.0.0.0", api_keys=(KEY,)).host == "0.0.0.0"


def test_cluster_settings_from_strings() -> None:
    settings = ClusterSettings.read({"replicas": "2", "gpus": "0.5", "max_tokens": "100"}, {"api_keys": (KEY,)})
    assert (settings.replicas, settings.most, settings.gpus, settings.server.max_tokens) == (2, 2, 0.5, 100)
    assert settings.server.api_keys == (KEY,)
    assert settings.ingress.max_num_seqs == 16


@pytest.mark.parametrize(("wrong", "match"), [
    ({"replica": "2"}, "unknown: replica; known: "), ({"replicas": "0"}, "replicas must be at least 1"),
    ({"replicas": "2", "most_replicas": "1"}, "most_replicas must be at least replicas"),
    ({"header_seconds": "5"}, "unknown: header_seconds"), ({"grace_seconds": "5"}, "unknown: grace_seconds"),
    ({"host": "0.0.0.0"}, "VLROUTE_API_KEYS"), ({"model": "two.json"}, "not endpoints"),
])  # fmt: skip
def test_impossible_cluster_settings_are_refused(wrong: dict[str, str], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        ClusterSettings.read(wrong, {})
