"""Texts that break careless programs: what strangers type, paste and upload, and what tools leave behind."""

from __future__ import annotations

import random
import unicodedata

ODD = [
    "",
    " ",
    "   \t  ",
    "\n",
    "\n\n\n",
    "\r\n",
    "\r",
    "\t",
    # punctuation and symbols only
    ".",
    "...",
    "!!!???",
    "…",
    "·",
    "，。、",
    "-" * 200,
    '"',
    '""',
    '"""',
    "'",
    "`~!@#$%^&*()_+-=[]{}|;':\",./<>?",
    "\\",
    "\\n\\t\\u0000",
    # emojis: plain, joined by ZWJ, with skin tone, flags, keycaps, with variation selectors
    "🙂",
    "🙂" * 100,
    "👨‍👩‍👧‍👦",
    "👍🏽👍🏿",
    "🇰🇷🇰🇵",
    "1️⃣2️⃣",
    "❤️",
    "😀😃😄 😁😆😅 🤣😂🙂",
    "🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    # Korean as it is typed
    "ㅋㅋㅋ",
    "ㅋ" * 500,
    "ㅠㅠㅜㅜ",
    "ㅇㅇ ㄴㄴ ㄱㄱ",
    "ㅎㅎ 넵!!",
    "안녕하세요ㅋㅋㅋ 반갑습니다ㅎㅎ",
    "뷁 쀍 똠방각하 펲시콜라",
    "각",
    unicodedata.normalize("NFD", "각"),
    unicodedata.normalize("NFD", "한글 자모가 풀린 문장"),
    "ㅤ",  # Hangul filler
    "가ㅤ나ㅤ다",
    "훈민정음 ᄒᆞᆫ글",  # old Korean
    "띄어쓰기가하나도없는아주긴문장입니다정말로하나도없습니다" * 10,
    "띄 어 쓰 기 가 너 무 많 은 문 장",
    # other scripts, and many at once
    "漢字와 한글 mixed with English и русский",
    "日本語とカタカナ ﾊﾝｶｸ",
    "العربية من اليمين",
    "עברית שלום",
    "ภาษาไทยไม่มีวรรค",
    "हिन्दी देवनागरी",
    "Ελληνικά άέήίόύώ",
    "ﬁﬂ ﷺ ㎏ ㈜ ① ½ Ⅳ",  # what NFKC takes apart
    "ＦＵＬＬ　ＷＩＤＴＨ　１２３",
    "z̷̢̛a̸l̵g̶o̷" * 20,
    "İıſßẞ",
    "𝕳𝖆𝖓𝖌𝖚𝖑 𝟙𝟚𝟛",
    "𠀀𪛖",  # beyond the basic plane
    # invisible and forbidden
    "\x00",
    "국민\x00청원",
    "\x01\x02\x1b[31m빨강\x1b[0m",
    "\x7f\x80\x85\x9f",
    "\ud800",
    "\udfff",
    "국민\ud83d청원",  # half an emoji
    "\udc80\udcff",  # bytes that surrogateescape could not decode
    "\ufeff국민 청원",
    "\ufffe\uffff",
    "\ufffd\ufffd",
    "\u200b",
    "국\u200b민\u200d청\u2060원",
    "\u202e뒤집힌 글\u202c",
    "첫째\u2028둘째\u2029셋째\x0b넷째\x0c다섯째\x85여섯째",
    "\u00a0\u2003\u3000\u1680",
    "\U000e0041\U0010ffff\ue000",
    # lines, tabs, carriage returns
    "첫 줄\n둘째 줄\n셋째 줄",
    "첫 줄\r\n둘째 줄\r\n",
    "옛 맥\r줄바꿈",
    "탭\t으로\t나눈\t글",
    "\n앞뒤로 빈 줄\n",
    "같은 줄\n" * 300,
    "\n".join(f"{number}번째 줄입니다" for number in range(300)),
    # what spreadsheets run, parsers read and shells expand
    "=1+1",
    '=HYPERLINK("http://example.com";"눌러 보세요")',
    "+82 10-1234-5678",
    "-5도",
    "@국민청원",
    "'=인용",
    "\t=SUM(A1:A9)",
    "=cmd|'/C calc'!A0",
    "a,b,c",
    '"a","b"',
    '"따옴표가 닫히지 않은 문장',
    '따옴표가 "가운데" 있는 문장',
    "a;b;c|d",
    '{"prediction": "가"}',
    '["가", "나"]',
    "null",
    "NaN",
    "nan",
    "None",
    "true",
    "0",
    "1e999",
    "<br>줄<br/>바꿈",
    "<script>alert('안녕')</script>",
    "<!-- 주석 -->",
    "&lt;태그&gt; &amp; &#44033;",
    "<s> </s> <pad> <unk> <mask> <usr> <sys>",
    "#Person1#: 안녕 #Person2#: 그래",
    "[CLS] 안녕 [SEP]",
    "▁안녕 ##하세요",
    "Ġhello Ċ",
    "$(rm -rf /) `ls` ${HOME} %PATH%",
    "../../etc/passwd",
    "C:\\Users\\이름\\문서",
    "https://www1.president.go.kr/petitions/Temp/QcgRIq?가=나&다=라#마",
    "이메일@example.com",
    "'; DROP TABLE 청원; --",
    "%s %d %n {0} {name}",
    # long
    "가" * 50_000,
    "가나다라 " * 10_000,
    "ㅋ" * 50_000,
    "a" * 50_000,
    "." * 50_000,
    "🙂" * 50_000,
    " " * 50_000,
    "한 줄\n" * 12_500,
]

WORDS = [
    "국민",
    "청원에",
    "답하라",
    "ㅋㅋㅋ",
    "OK",
    "2018년",
    "🙂",
    "...",
    "漢字",
    "\n",
    "\t",
    "=1",
    '"',
    "'",
    ",",
    "\u200b",
]

COUNT = 200


def rows() -> list[str]:
    """COUNT texts, the same every time: `ODD`, then random mixtures of odd words."""
    source = random.Random(200)
    mixtures = ["".join(source.choices(WORDS, k=source.randrange(1, 40))) for _ in range(COUNT - len(ODD))]
    return ODD + mixtures
