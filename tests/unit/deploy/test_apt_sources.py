"""The machine's package sources, in both of their notations, and the backports derived from them."""

from __future__ import annotations

from deploy.setup.apt_sources import AptSource, of_release, parse_deb822, parse_list, with_backports

MIRROR = "http://mirror.example/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
RELEASE = AptSource(uris=(MIRROR,), suites=("bookworm", "bookworm-updates"), components=("main",), options={"Signed-By": KEYRING})


def test_a_deb822_stanza_is_read_past_a_comment_in_its_middle():
    text = f"""\
Types: deb
# {MIRROR}-snapshot
URIs: {MIRROR}
Suites: bookworm bookworm-updates
Components: main
Signed-By: {KEYRING}
"""

    assert parse_deb822(text) == (RELEASE,)


def test_a_key_written_out_in_a_stanza_is_kept_line_by_line():
    key = "\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBF\n -----END PGP PUBLIC KEY BLOCK-----"
    text = f"Types: deb\nURIs: {MIRROR}\nSuites: bookworm\nComponents: main\nSigned-By:{key}\n"

    (source,) = parse_deb822(text)

    assert source.options == {"Signed-By": key}
    assert parse_deb822(source.to_stanza()) == (source,)


def test_stanzas_that_are_disabled_or_hold_source_packages_are_passed_over():
    place = f"URIs: {MIRROR}\nSuites: bookworm\nComponents: main\n"

    assert parse_deb822(f"Types: deb\nEnabled: no\n{place}\nTypes: deb-src\n{place}") == ()


def test_a_one_line_source_says_the_same_as_its_stanza():
    lines = f"""\
# the release
deb [signed-by={KEYRING} arch=amd64,i386] {MIRROR} bookworm main contrib  # and more
deb-src {MIRROR} bookworm main
"""

    assert parse_list(lines) == (
        AptSource(
            uris=(MIRROR,),
            suites=("bookworm",),
            components=("main", "contrib"),
            options={"Signed-By": KEYRING, "Architectures": "amd64 i386"},
        ),
    )


def test_backports_come_from_where_the_release_comes_from_with_its_keyring():
    security = AptSource(uris=(f"{MIRROR}-security",), suites=("bookworm-security",), components=("main",))
    other = AptSource(uris=("https://packages.example",), suites=("bookworm",), components=("stable",))

    derived = with_backports([security, RELEASE, other], "bookworm")

    assert derived[-1] == AptSource(
        uris=(MIRROR,), suites=("bookworm-backports",), components=("main",), options={"Signed-By": KEYRING}
    )
    assert derived[:-1] == (security, RELEASE)


def test_without_a_source_of_the_release_nothing_is_derived():
    assert with_backports([RELEASE], "trixie") == ()


def test_another_release_is_had_from_the_mirrors_of_this_one():
    security = AptSource(uris=("http://security.example",), suites=("bookworm-security",), components=("main",))

    derived = of_release(with_backports([security, RELEASE], "bookworm"), "bookworm", "trixie")

    assert [source.suites for source in derived] == [("trixie-security",), ("trixie", "trixie-updates"), ("trixie-backports",)]
    assert {source.uris for source in derived} == {(MIRROR,), ("http://security.example",)}
