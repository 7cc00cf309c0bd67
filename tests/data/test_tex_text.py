"""Papers as text: comments go, cuts are where they should be."""

from __future__ import annotations

import pytest

from locojax.data import tex_text

_PAPER = r"""\documentclass{article}
\begin{document}
Preface.
\section{Introduction}  % a comment
% a line of its own
  % another
We have 5\% of $x$. \\% after a line break
\section*{Method}
$a_{1}$
\appendix
\section{More}
\end{document}
"""
_BODY = r"""\section{Introduction}
We have 5\% of $x$. \\
\section*{Method}
$a_{1}$"""


def test_a_paper():
  assert tex_text.clean_tex([_PAPER]) == (_BODY, None)
  text, reason = tex_text.clean_tex([_PAPER], title=" T ", abstract="A")
  assert (text, reason) == (f"T\n\nA\n\n{_BODY}", None)


@pytest.mark.parametrize(
  "end",
  [
    "\\appendix",
    "\\begin{thebibliography}{9}",
    "\\bibliography{a}",
    "\\section{References}",
    "\\section*{References}",
    "\\end{document}",
  ],
)
def test_what_ends_a_paper(end):
  files = ["\\section{A}\na\n" + end + "\nb", "\\section{B}"]
  assert tex_text.clean_tex(files) == ("\\section{A}\na", None)
  other = "\\section{A}\na\n\\appendixname \\bibliographystyle{x}"
  assert tex_text.clean_tex([other]) == (other, None)


DROPPED = [
  ([""], {}, "empty"),
  (["% all\n  % of it"], {}, "empty"),
  (["a\nb"], {}, "no_section"),
  (["% \\section{A}\nb"], {}, "no_section"),
  (["\\section{A} b"], {"title": "T"}, "no_newline"),
  (["\\section{A}\nb"], {"max_tokens": 3}, "too_long"),
  (["\\section{A}\nb"], {"max_tokens_per_char": 0.1}, "token_rate"),
]


@pytest.mark.parametrize(("files", "settings", "reason"), DROPPED)
def test_why_a_paper_is_dropped(files, settings, reason):
  told = tex_text.clean_tex(files, count_tokens=lambda t: 4, **settings)
  assert told == (None, reason)
  assert reason in tex_text.REASONS


LITERAL = [
  "\\begin{verbatim}\na % b\n% c\n\\end{verbatim}",
  "\\begin{lstlisting}\n100 % 3\n\\end{lstlisting}",
  "\\verb|%| and \\verb*+%+ x",
  "\\url{http://a/b%20c} x",
  "\\href{http://a/b%20c}{d}",
  "5\\% \\\\\\% x",
]


@pytest.mark.parametrize("text", LITERAL)
def test_a_per_cent_sign_that_is_no_comment(text):
  assert tex_text.without_comments(text) == text
  assert tex_text.without_comments(text + "% c") == text


def test_sources_are_read_where_they_are_named(tmp_path):
  for name, text in {
    "ms.tex": "\\documentclass{a}\n\\input{parts/one}\n%\\input{draft}\n"
    "\\include{two} \\input three\n\\input{missing}\n\\includegraphics{one}",
    "parts/one.tex": "ONE \\input{parts/deep}",
    "parts/deep.tex": "DEEP \\input{ms}",
    "two.tex": "TWO",
    "three.tex": "THREE \\input{two}",
    "draft.tex": "\\documentclass{a} DRAFT",
  }.items():
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
  (tmp_path / "old.tex").write_bytes("caf\u00e9".encode("latin-1"))
  files = tex_text.read_folder(tmp_path)
  assert files["old.tex"] == "caf\u00e9"
  assert tex_text.main_of(files) == "ms.tex"
  whole = tex_text.flatten(files)
  assert whole == (
    "\\documentclass{a}\nONE DEEP \\input{ms}\nTWO THREE \\input{two}\n"
    "\\input{missing}\n\\includegraphics{one}"
  )
  assert tex_text.flatten({"b.tex": "B", "a.tex": "A"}) == "A\nB"


def test_sources_that_name_each_other_end():
  names = [f"f{i}" for i in range(60)]
  files = {f"{n}.tex": f"\\input{{{m}}}" * 2 for n, m in zip(names, names[1:])}
  files |= {"main.tex": "\\documentclass{a}\\input{f0}", "f59.tex": "x"}
  assert tex_text.flatten(files).count("x") == 1


@pytest.mark.parametrize("name", ["max_tokens", "max_tokens_per_char"])
def test_bad_limits_are_refused(name):
  with pytest.raises(ValueError, match=name):
    tex_text.clean_tex(["a"], **{name: 0})
