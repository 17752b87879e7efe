"""Key text and allow-lists: what is no key is refused, secrets are never taken for public keys nor repeated."""

from __future__ import annotations

import pytest
import zmq

from pipeline.authorisation import (
    AllowList,
    NamedKey,
    check_key,
    parse_public,
    parse_secret,
    render_public,
    render_secret,
)

# From the ZeroMQ specification of Z85 and CURVE: real keys, of nobody.
FIRST = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
SECOND = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"


def test_keys_of_libzmq_are_keys() -> None:
    for key in (FIRST, SECOND, *(part.decode() for part in zmq.curve_keypair())):
        check_key(key)


@pytest.mark.parametrize(
    "text",
    ["", FIRST[:-1], FIRST + "0", FIRST[:-1] + "'", FIRST[:-1] + "\u00e9", "#" * 40, FIRST[:35] + "%nSc1"],
    ids=["empty", "short", "long", "quote", "accent", "beyond 32 bits", "first number beyond 32 bits"],
)
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no key"):
        check_key(text)


def test_largest_number_of_a_group_is_the_last_that_counts() -> None:
    """%nSc0 is 2^32 - 1 in Z85."""
    check_key("%nSc0" * 8)


def test_files_come_back_as_they_were_written() -> None:
    entry = NamedKey("door", FIRST)
    assert parse_public(render_public(entry)) == [entry]
    assert parse_secret(render_secret(entry)) == entry


def test_list_has_comments_empty_lines_and_keys_with_a_hash() -> None:
    key = "#" + FIRST[1:]  # 84 x 85^4 is too large a number, so not this one
    with pytest.raises(ValueError, match="line 3: no key"):
        parse_public(f"# fleet\n\ndoor {key}\n")
    inside = FIRST[:4] + "#" + FIRST[5:]
    text = f"# fleet\n\n  door\t{inside}  \n#yard {SECOND}\nbelt {SECOND}\r\n"
    assert parse_public(text) == [NamedKey("door", inside), NamedKey("belt", SECOND)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"secret door {FIRST}", "line 1: holds a secret key, where public ones"),
        ("door", "line 1: must be a name and a key"),
        (f"door {FIRST} x", "line 1: must be a name and a key"),
        (f"../door {FIRST}", "line 1: its name must be"),
        (f"door {FIRST[:-1]}", "line 1: no key"),
    ],
)
def test_bad_line_is_named_and_never_repeated(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        parse_public(text)
    assert FIRST[:-1] not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "# nothing", f"door {FIRST}", f"secret door {FIRST}\nsecret yard {SECOND}", f"secret door {FIRST[:-1]}"],
)
def test_file_that_is_no_secret_key_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_secret(text)
    assert FIRST[:-1] not in str(caught.value)


def test_secret_is_not_in_the_representation() -> None:
    assert FIRST not in repr(NamedKey("door", FIRST))


def test_list_knows_nodes_by_their_keys() -> None:
    allowed = AllowList([NamedKey("door", FIRST), NamedKey("yard", SECOND)])
    assert (allowed.name_of(FIRST), allowed.name_of(SECOND), allowed.name_of("x")) == ("door", "yard", None)
    assert len(allowed) == 2
    assert AllowList().name_of(FIRST) is None


def test_node_may_have_two_keys_but_a_key_not_two_nodes() -> None:
    """Two keys are how one is changed without a gap; two nodes with one key could not be told apart."""
    assert len(AllowList([NamedKey("door", FIRST), NamedKey("door", SECOND), NamedKey("door", FIRST)])) == 2
    with pytest.raises(ValueError, match="the key of door is also the one of yard"):
        AllowList([NamedKey("door", FIRST), NamedKey("yard", FIRST)])
