"""The examples of the prompts, as their papers publish them.

MATH and OCWCourses: Lewkowycz et al., arXiv 2206.14858, appendix; GSM8K: Wei et
al., "Chain-of-thought prompting", arXiv 2201.11903, appendix; multiple choice:
the examples of MATH with four answers, as public evaluations of MMLU-STEM have
them. Each is (question, solution, answer).
"""

from __future__ import annotations

Example = tuple[str, str, str]

_DOMAIN = r"Find the domain of the expression  $\frac{\sqrt{x-2}}{\sqrt{5-x}}$."
_DOMAIN_SOLVED = (
  r"The expressions inside each square root must be non-negative. "
  r"Therefore, $x-2 \ge 0$, so $x\ge2$, and $5 - x \ge 0$, so $x \le 5$. "
  r"Also, the denominator cannot be equal to zero, so $5-x>0$, which gives "
  r"$x<5$. Therefore, the domain of the expression is $\boxed{[2,5)}$."
)
_DET = (
  r"If $\det \mathbf{A} = 2$ and $\det \mathbf{B} = 12,$ then find "
  r"$\det (\mathbf{A} \mathbf{B}).$"
)
_DET_SOLVED = (
  r"We have that $\det (\mathbf{A} \mathbf{B}) = (\det \mathbf{A})"
  r"(\det \mathbf{B}) = (2)(12) = \boxed{24}.$"
)
_WEIGHTS = (
  "Terrell usually lifts two 20-pound weights 12 times. If he uses two "
  "15-pound weights instead, how many times must Terrell lift them in order "
  "to lift the same total weight?"
)
_WEIGHTS_SOLVED = (
  r"If Terrell lifts two 20-pound weights 12 times, he lifts a total of "
  r"$2\cdot 12\cdot20=480$ pounds of weight.  If he lifts two 15-pound "
  r"weights instead for $n$ times, he will lift a total of "
  r"$2\cdot15\cdot n=30n$ pounds of weight.  Equating this to 480 pounds, we "
  r"can solve for $n$:"
  "\n"
  r"""\begin{align*}
30n&=480\\
\Rightarrow\qquad n&=480/30=\boxed{16}
\end{align*}"""
)
_SYSTEM = r"""If the system of equations

\begin{align*}
6x-4y&=a,\\
6y-9x &=b.
\end{align*}has a solution $(x, y)$ where $x$ and $y$ are both nonzero,
find $\frac{a}{b},$ assuming $b$ is nonzero."""
_SYSTEM_SOLVED = (
  r"""If we multiply the first equation by $-\frac{3}{2}$, we obtain"""
  r"""

$$6y-9x=-\frac{3}{2}a.$$Since we also know that $6y-9x=b$, we have

$$-\frac{3}{2}a=b\Rightarrow\frac{a}{b}=\boxed{-\frac{2}{3}}.$$"""
)

MATH: tuple[Example, ...] = (
  (_DOMAIN, _DOMAIN_SOLVED, "[2,5)"),
  (_DET, _DET_SOLVED, "24"),
  (_WEIGHTS, _WEIGHTS_SOLVED, "16"),
  (_SYSTEM, _SYSTEM_SOLVED, r"-\frac{2}{3}"),
)
# As evaluations have copied it from the paper.
STRAY = "}"

# Answers to choose from, and the right one's letter.
MATH_CHOICES: tuple[tuple[tuple[str, ...], str], ...] = (
  (("[-5,-2)", "[2,5)", "[-2,-5)", "[5,2)"), "B"),
  (("14", "4", "2", "24"), "D"),
  (("12", "20", "16", "15"), "C"),
  (
    (
      r"$-\frac{2}{3}$",
      r"$\frac{2}{3}$",
      r"$\frac{1}{3}$",
      r"$\frac{4}{9}$",
    ),
    "A",
  ),
)

OCW: tuple[Example, ...] = (
  (
    "Subproblem 0: What is the net charge of arginine in a solution of "
    r"$\mathrm{pH} 1.0$? "
    "\nPlease format your answer as +n or -n.",
    "The answer is +2.",
    "+2",
  ),
  (
    r"Subproblem 0: Let $z = 1 + \sqrt{3} i$. Find $a, b$ that satisfy the "
    "equation \n"
    r"$z^4 = a + bi$. Express your answer as the ordered pair $(a,b)$.",
    r"$z^{4}$ has argument $4 \pi / 3$ and radius 16 , so it's equal to "
    "$-8-8 \\sqrt{3} i$. \n"
    r"Thus $a = -8, b = -8\sqrt 3$, and our answer is "
    r"$\boxed{(-8, -8\sqrt{3})}$.",
    r"(-8, -8\sqrt{3})",
  ),
  (
    r"Preamble: For each Laplace Transform \(Y(s)\), find the function "
    r"""\(y(t)\):
Subproblem 0:
\[Y(s)=\boxed{\frac{1}{(s+a)(s+b)}}\]""",
    r"""We can simplify with partial fractions:
\[Y(s)=\frac{1}{(s+a)(s+b)}=\frac{C}{s+a}+\frac{D}{s+b}\]
find the constants
\(C\) and \(D\) by setting \(s=-a\) and \(s=-b\)
\[
\begin{aligned}
\frac{1}{(s+a)(s+b)} &=\frac{C}{s+a}+\frac{D}{s+b} \\
1 &=C(s+b)+D(s+a) \\
C &=\frac{1}{b-a} \\
D &=\frac{1}{a-b}
\end{aligned}
\]
therefore
\[
Y(s)=\frac{1}{b-a} \frac{1}{s+a}-\frac{1}{b-a} \frac{1}{s+b}
\]
By looking up the inverse Laplace Transform of \(\frac{1}{s+b}\), we find """
    r"""the total
solution \(y(t)\)
\[
y(t)=\boxed{\frac{1}{b-a}\left(e^{-a t}-e^{-b t}\right)}
\].""",
    r"\[\frac{1}{b-a}\left(e^{-a t}-e^{-b t}\right)\]",
  ),
  (
    "Preamble: The following subproblems refer to the differential equation \n"
    r"$\ddot{x}+b \dot{x}+x=0$."
    "\nSubproblem 0: What is the characteristic polynomial $p(s)$ of \n"
    r"$\ddot{x}+b \dot{x}+x=0$?",
    r"The characteristic polynomial is $p(s)=\boxed{s^{2}+b s+1}$.",
    "$s^{2}+b s+1$",
  ),
)

GSM8K: tuple[Example, ...] = (
  (
    "There are 15 trees in the grove. Grove workers will plant trees in the "
    "grove today. After they are done, there will be 21 trees. How many trees "
    "did the grove workers plant today?",
    "There are 15 trees originally. Then there were 21 trees after some more "
    "were planted. So there must have been 21 - 15 = 6.",
    "6",
  ),
  (
    "If there are 3 cars in the parking lot and 2 more cars arrive, how many "
    "cars are in the parking lot?",
    "There are originally 3 cars. 2 more cars arrive. 3 + 2 = 5.",
    "5",
  ),
  (
    "Leah had 32 chocolates and her sister had 42. If they ate 35, how many "
    "pieces do they have left in total?",
    "Originally, Leah had 32 chocolates. Her sister had 42. So in total they "
    "had 32 + 42 = 74. After eating 35, they had 74 - 35 = 39.",
    "39",
  ),
  (
    "Jason had 20 lollipops. He gave Denny some lollipops. Now Jason has 12 "
    "lollipops. How many lollipops did Jason give to Denny?",
    "Jason started with 20 lollipops. Then he had 12 after giving some to "
    "Denny. So he gave Denny 20 - 12 = 8.",
    "8",
  ),
  (
    "Shawn has five toys. For Christmas, he got two toys each from his mom "
    "and dad. How many toys does he have now?",
    "Shawn started with 5 toys. If he got 2 toys each from his mom and dad, "
    "then that is 4 more toys. 5 + 4 = 9.",
    "9",
  ),
  (
    "There were nine computers in the server room. Five more computers were "
    "installed each day, from monday to thursday. How many computers are now "
    "in the server room?",
    "There were originally 9 computers. For each of 4 days, 5 more computers "
    "were added. So 5 * 4 = 20 computers were added. 9 + 20 is 29.",
    "29",
  ),
  (
    "Michael had 58 golf balls. On tuesday, he lost 23 golf balls. On "
    "wednesday, he lost 2 more. How many golf balls did he have at the end of "
    "wednesday?",
    "Michael started with 58 golf balls. After losing 23 on tuesday, he had "
    "58 - 23 = 35. After losing 2 more, he had 35 - 2 = 33 golf balls.",
    "33",
  ),
  (
    "Olivia has $23. She bought five bagels for $3 each. How much money does "
    "she have left?",
    "Olivia had 23 dollars. 5 bagels for 3 dollars each will be 5 x 3 = 15 "
    "dollars. So she has 23 - 15 dollars left. 23 - 15 is 8.",
    "8",
  ),
)
