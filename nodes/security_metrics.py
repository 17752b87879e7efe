"""What Prometheus and people see of the cloud's security."""

from __future__ import annotations

from nodes.authenticator import Authenticator
from nodes.exporter import Exporter
from nodes.security import InsecureReminder


class SecurityMetrics:
    """Publishes what the authenticator counts, and keeps the reminder going; call `publish` once a second."""

    def __init__(self, exporter: Exporter, reminder: InsecureReminder, guard: Authenticator | None) -> None:
        """Join.

        Args:
            guard: None without keys.
        """
        self._exporter, self._reminder, self._guard = exporter, reminder, guard
        self._carried = {"unknown_key": 0, "bad_handshake": 0}
        self.publish()

    @property
    def mode(self) -> str:
        """keys, insecure, or local: only this machine can connect."""
        return "keys" if self._guard is not None else "insecure" if self._reminder.is_insecure else "local"

    def summary(self) -> str:
        """The same for people."""
        if self._guard is not None:
            number = len(self._guard.allow_list())
            return f"{number} key{'s' * (number != 1)} allowed"
        return "INSECURE: no keys" if self._reminder.is_insecure else "no keys: this machine only"

    def publish(self) -> None:
        """Bring metrics up to date."""
        self._reminder.look()
        exporter, guard = self._exporter, self._guard
        exporter.set("rac_cloud_insecure", float(self._reminder.is_insecure))
        if guard is None:
            return
        exporter.set("rac_cloud_allowed_keys", len(guard.allow_list()))
        exporter.set("rac_cloud_allow_list_outdated", float(guard.is_outdated))
        for outcome, total in {"unknown_key": guard.unknown_keys, "bad_handshake": guard.failed_handshakes}.items():
            exporter.add("rac_cloud_handshakes_total", outcome, amount=total - self._carried[outcome])
            self._carried[outcome] = total
