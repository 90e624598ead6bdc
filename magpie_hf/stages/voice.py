"""Decide whether a text is an assistant's message instead of a user's.

Assistants and users begin alike ("Sure!", "Here are some reviews: …", "I'm sorry, but …"), so the beginning alone decides
nothing. A text is an assistant's if it begins like one and requests nothing: no sentence begins with the verb of a task
("Translate …"), and no question is asked except what an assistant asks back ("Which one would you like?").
"""

from __future__ import annotations

import re


_TASKS = """
    adapt add advise alphabeti[sz]e analy[sz]e annotate answer apply argue arrange ask assess assign assume balance
    brainstorm budget build calculate capitali[sz]e categori[sz]e change chart check choose cite classify clean combine
    comment compare compile complete compose compute condense construct continue contrast convert correct count create
    criti(?:que|ci[sz]e) debug decide decode decrypt deduce deduct define demonstrate derive describe design determine
    develop devise diagnose differentiate discuss divide do draft draw edit elaborate encode encrypt enlarge enumerate
    estimate evaluate examine expand explain explore express extend extract fact-check factor fill find finish fix
    flatten forecast format formulate generate give grade graph group guess help highlight identify illustrate imagine
    implement improve infer insert integrate interpret interview invent itemi[sz]e judge justify label list make map
    match maximi[sz]e merge migrate minimi[sz]e modify multiply name narrate optimi[sz]e order organi[sz]e outline
    paraphrase phrase pick plan play plot point polish port praise predict prepare present pretend produce pronounce
    proof proofread propose prove provide punctuate quiz quote rank rate read recalculate recite recommend recompute
    reconstruct redo reduce refactor reformat regroup remove rename reorder rephrase replace reply report reschedule
    research respond restate restructure reverse review revise reword rework rewrite rhyme roast schedule score search
    select separate shorten show shrink simplify simulate sketch soften solve sort speak specify spell split spot state
    subtract suggest sum summari[sz]e suppose swap symboli[sz]e tabulate tag tally teach tell test tighten title trace
    transcribe transform translate trim troubleshoot try turn underline unscramble update use verify write
""".split()
"""Verbs with which tasks begin. Those that also begin an assistant's advice (keep, note, take) are left out."""
_FOREIGN_TASKS = (
    r"(?:bitte )?(?:schreibe?|erkläre?|übersetze?|nenne?|gib|erstelle?|berechne|fasse?|zeige?|hilf|löse?|beschreibe?|vergleiche?)\b(?! ich\b)",
    r"(?:y |ahora |pero )?(?:escribe|explica|traduce|dame|haz|crea|calcula|resume|enumera|genera|describe|ayúdame|resuelve|corrige|redacta)\b",
    r"(?:et |mais )?(?:écri(?:s|vez)|expliquez?|tradui(?:s|sez)|donne-moi|résumez?|calculez?|créez?|rédigez?|décri(?:s|vez)|aide(?:z)?-moi|corrigez?)\b",
    r"(?:scrivi|spiega(?:mi)?|traduci|dammi|riassumi|calcola|crea|descrivi|elenca|aiutami|risolvi|correggi)\b",
    r"(?:escreva|explique|traduza|resuma|calcule|crie|descreva|liste|ajude-me|resolva|corrija)\b",
    r"(?:напиши|объясни|переведи|составь|реши|опиши|перечисли|исправь|создай|помоги мне)(?:те)?\b",
    r"[^\n]{0,60}?(?:请(?:你|您)?(?:帮我|给我(?!更多)|用|写|解释|翻译|推荐|证明|计算|列出|总结|分析|比较|设计|编写|改写|介绍|举)|帮我|怎么办)",
    r"[^\n]{0,60}?(?:翻訳し|訳し|説明し|要約し|計算し|作成し|書い|作っ|解い|直し)て(?:ください|下さい|くれ)",
    r"[^\n]{0,60}?(?:써|설명해|번역해|만들어|요약해|추천해|계산해|작성해) ?(?:줘|주세요)",
)
"""How tasks begin in other languages. Left out is what assistants also ask for: details, what is needed, a text."""
_TASK = re.compile(
    r"[\W_]*+(?:(?:sure|ok|okay|yes|absolutely|of course|certainly),? (?=(?:but|now|then|please)\b))?(?:(?:please|kindly|now|then|so|and|but|also|next|first|finally|instead|again|in \d+ words),? )*"
    rf"(?:(?:help|ask) me\b|i(?: need|'d like| want| would like) (?!to (?:help|assist))|(?:{'|'.join(_TASKS)})\b"
    rf"|{'|'.join(_FOREIGN_TASKS)})",
    re.IGNORECASE,
)
_QUESTION = re.compile(r"[\W_]*+(?:what|which|who|whose|why|how)\b", re.IGNORECASE)
_WANTED = re.compile(r"\bi(?: need| want| would like|'d like) you to\b|\bplease[.!]*$", re.IGNORECASE)
_ITEM = re.compile(r"[ \t]*(?:[-*•]|\d{1,3}[.)])[ \t]")
_SENTENCE = re.compile(r"[^.!?:;\n。！？؟]*[.!?:;\n。！？؟]?")
_SERVES = re.compile(r"\byou(?:'d| would)? (?:like|want|need) (?:me\b|help|to)", re.IGNORECASE)
_ASKED_BACK = re.compile(
    r"[\W_]*+(?:(?:can|could|would|will) you (?:please )?(?:share|provide|paste|clarify|specify|confirm|upload|send)\b"
    r"|.{0,60}?\b(?:(?:would you|you would|you'd) (?:like|prefer)|(?:can|may|could) i (?:(?:help|assist)(?! (?:my|our|an?|the|him|her|them|someone|people|others)\b)|be of|do for you)"
    r"|i can (?:help|do for you)"
    r"|do you (?:want|need|prefer|have (?:any|more|other))|are you (?:\w+ing|interested))\b"
    r"|.{0,60}?(?:帮(?!我)|需要|möchten sie|puedo ayudar|puis-je))",
    re.IGNORECASE,
)

_ANY_GREETING = (
    r"(?:(?:hello|hi|hey|welcome|greetings|good (?:morning|afternoon|evening))\b[^.!?,\n]{0,30}[.!,?]?\s*)?"
)
_AN_AI = r"an? (?:ai|(?:large )?language model|(?:ai|virtual) (?:language model|model|assistant)|chatbot)"
_AGREES = (
    r"(?:sure(?: thing)?|certainly|of course|absolutely|understood|got it|no problem|gladly|claro|por supuesto|bien sûr|"
    r"natürlich|gerne?|selbstverständlich|certo|конечно|当然|当然可以|好的|もちろんです|물론입니다)\s*[,.!，！。]",
    r"(?:(?:that's|what) an? )?(?:great|good|excellent|interesting|wonderful) (?:question|choice|idea|point)\s*[!.]",
    r"you(?:'re| are) (?:very )?welcome[.!]",
)
_OFFERS = (
    rf"{_ANY_GREETING}(?:how|what) (?:can|may|could) i (?:help|assist|do for)(?: you)?(?: with(?: (?:that|this|your \w+))?)?"
    r"(?: (?:today|now))?\s*[.?!]",
    rf"{_ANY_GREETING}how (?:can|may|could) i be of (?:service|help|assistance)\b",
    r"i(?:'d| would) be (?:happy|glad|delighted) to (?:help|assist|explain|answer|provide)\b",
    r"i(?:'m| am) (?:happy|glad|here) to (?:help|assist)\b",
    r"i can (?:certainly |definitely )?(?:help|assist)(?: you)? with (?:that|this|your)\b",
    r"what would you like (?:me to|to (?:know|do|ask|discuss|talk|chat|explore|learn))(?: [\w']+){0,3}\s*\?",
    r"is[ ]there (?:anything|something) (?:else |specific |in particular )*(?:i can (?:help|do for you)|you(?:'d| would)? (?:like|want|need))\b",
    r"(?:wie|womit|was) (?:kann|darf) ich (?:ihnen|dir|für (?:sie|dich))|gerne? helfe ich|en qué (?:te |le )?puedo ayudar|"
    r"comment puis-je (?:vous |t')?aider|come posso aiutar|como posso (?:te )?ajudar|чем (?:я )?(?:вам )?могу (?:вам )?помочь|"
    r"(?:请问)?(?:您|你)?(?:有什么|需要什么)[^。？\n]{0,10}帮|何かお手伝い|무엇을 도와",
)
# "I cannot open my mail" is a user; an assistant has a training, a knowledge, …
_NOT_OF_OWN_THINGS = (
    r"(?![^.!?\n]{0,160}\bmy (?!(?:\w+ )?(?:abilit|best|capabilit|creator|data|design|developer|function|guideline|instruction|knowledge|"
    r"limit|nature|polic|programming|purpose|respons|role|safety|system|training)))"
)
_SPEAKS_OF_ITSELF = (
    r"(?:(?:i(?:'m| am) )?(?:very |so |really )?sorry|i(?:'m| am) afraid|unfortunately)\b[^.!?\n]{0,60}\b(?:can't|cannot|can not|unable|not able|as an ai)\b",
    r"i (?:can't|cannot) (?:help|assist) (?:you )?with\b|i (?:can't|cannot) (?:fulfill|comply with)\b|i apologi[sz]e for (?:the|any)\b",
    r"i(?:'m| am) (?:unable|not able) to (?:help|assist|provide|access|browse|open|see|answer)\b",
    r"i (?:don't|do not) have (?:personal|feelings|opinions|access to|the ability to|real-time)\b",
    r"es tut mir leid,? aber ich kann|lo siento,? pero no puedo|je suis désolée?,? mais je ne|(?:很?抱歉|对不起)[，,]?我(?:无法|不能)",
    r"as an ai(?: language)?(?: model| assistant)?\s*,?\s+i\b",  # "As an AI researcher, …" is a user
    rf"{_ANY_GREETING}i(?:'m| am) (?:\w+, )?(?:just |only )?{_AN_AI}(?:\s*[,.!]| (?:trained|created|developed|made) )",
    r"ich bin (?:nur )?eine? (?:ki|sprachmodell)|je suis une? (?:ia|modèle)|soy una? (?:ia|modelo)|sono un(?:'|a )ia|"
    r"作为(?:一个)?(?:人工智能|ai)|我是(?:一个)?(?:人工智能|ai)",
)
_ANSWERS = (
    # "Here are three ideas:", but not "Here is my text:"
    r"here(?:'s| is| are) (?![^:\n]{0,80}\b(?:i|my|me|our|us|we)\b)[^.?:\n]{1,80}:[ \t]*$",
    r"(?:it )?(?:seems|looks) (?:like )?you(?:'ve|r)?\b",
    # speaks about the message of the other
    r"[^.!?\n]{0,120}\b(?:your (?:question|request|query|prompt|message)|if you have any (?:other |more |further )?questions)\b",
    r"based on your (?:details|description|information|input|message|preferences|prompt|query|question|request|requirements)\b|"
    r"based on the \w+ (?:that )?you(?:'ve| have)? (?:described|gave|given|mentioned|provided|sent|shared)\b|(?:as|like) you (?:asked|requested)\b|here you (?:go|are)\b",
    r"(?:can|could|would) you (?:please )?(?:clarify (?:what you|your)|(?:provide|share|give me) (?:me with )?(?:some )?(?:more|additional|further) "
    r"(?:context|information|details)(?! (?:about|on|of|regarding)))\b",
    r"(?:please|kindly) [^.!?\n]{0,60}\byou(?:'d| would)? (?:like|want) me to\b",
    r"(?:please )?(?:let me know if you|feel free to)\b|i hope (?:this|that) helps\b",
)
_BEGINNING = re.compile(
    rf"[\W_]*+(?:{'|'.join((*_AGREES, *_OFFERS, *_ANSWERS))}|{_NOT_OF_OWN_THINGS}(?:{'|'.join(_SPEAKS_OF_ITSELF)}))",
    re.IGNORECASE | re.MULTILINE,
)


def is_assistant(text: str) -> bool:
    """Return whether a text begins like an assistant's message, and requests nothing."""
    straight = text.replace("’", "'")
    return _BEGINNING.match(straight) is not None and not requests(straight)


def requests(text: str) -> bool:
    """Return whether a sentence of a text is a user's request: a task, or a question that is not one asked back."""
    return any(
        _is_request(sentence)
        for line in text.splitlines()
        if not _ITEM.match(line)
        for sentence in _SENTENCE.findall(line)
    )


def _is_request(sentence: str) -> bool:
    if _SERVES.search(sentence) or _ASKED_BACK.match(sentence):
        return False
    if _TASK.match(sentence) or _QUESTION.match(sentence) or _WANTED.search(sentence):
        return True
    return sentence.endswith(("?", "？", "؟"))
