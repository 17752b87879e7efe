"""No password passes the mask, and nothing else is lost behind it."""

from __future__ import annotations

from pipeline.masking import mask_credentials


def test_masking_leaves_other_text_alone() -> None:
    text = "tcp://10.0.0.1:554?timeout=0 failed, mail a@b, http://host/a@2x.png, rtsp://u:p@h/s refused"
    masked = "tcp://10.0.0.1:554?timeout=0 failed, mail a@b, http://host/a@2x.png, rtsp://***@h/s refused"
    assert mask_credentials(text) == masked
