"""The words of the small world that the offline text speaks of.

Lists are ordered from common to rare: prose draws from them with weight 1/(rank + 3), the tasks draw
evenly, so that rare wordings are one of the things that make a task hard.
"""

from __future__ import annotations


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _split(
    "Anna Tom Ben Mary Sam Lily Jack Rosa Max Nina Paul Emma Leo Clara Hugo Ivy Oscar Ruth Felix Vera "
    "Karl Dora Simon Greta Noah Iris Peter Olga Victor Jane"
)
PLACES = _split(
    "park school market library kitchen garden station beach office castle museum harbour forest church "
    "bakery stable cellar tower theatre bridge farm prison airport island"
)
THINGS = _split(
    "key coin hat ring box cup lamp map bag ball clock coat spoon letter candle mirror basket ladder "
    "pillow kettle whistle needle button carpet"
)
COLOURS = _split("red blue green black white yellow brown pink grey purple orange golden")

ASPECTS = _split(
    "soup waiter room film plot music bread coffee view story actor bed menu cake staff ending band tea "
    "pool cook song lobby salad host"
)
GOOD = _split(
    "great lovely nice fresh kind warm clever tasty superb charming pleasant splendid gentle delightful "
    "polite witty perfect brilliant fine cosy elegant graceful radiant sublime"
)
BAD = _split(
    "awful rude dirty boring horrible stale dull nasty bitter dreadful ugly sour clumsy gloomy lousy "
    "shabby rotten tedious grim vile bland dismal wretched ghastly"
)

#: feeling -> what somebody who feels so did
MOODS = {
    "happy": _split("smiled laughed danced cheered sang grinned giggled beamed clapped rejoiced"),
    "sad": _split("cried wept sighed sobbed mourned moped whimpered drooped lamented despaired"),
    "angry": _split("shouted yelled frowned growled raged stamped scowled snarled cursed fumed"),
    "afraid": _split("trembled shivered hid fled gasped screamed shook cowered froze panicked"),
}

#: topic -> who did what to what
TOPICS = {
    "sport": (
        _split("striker runner coach goalkeeper swimmer boxer referee athlete"),
        _split("kicked scored tackled raced trained dribbled"),
        _split("goal match race trophy medal league penalty tournament"),
    ),
    "music": (
        _split("singer drummer pianist choir violinist composer guitarist conductor"),
        _split("played recorded hummed rehearsed tuned strummed"),
        _split("melody concert album guitar opera rhythm chorus symphony"),
    ),
    "food": (
        _split("chef baker butcher diner grocer brewer confectioner dairyman"),
        _split("cooked baked tasted fried roasted seasoned"),
        _split("stew pie sauce sausage noodles omelette pudding gravy"),
    ),
    "science": (
        _split("chemist scientist physicist astronomer biologist professor botanist geologist"),
        _split("measured studied discovered tested observed analysed"),
        _split("atom planet cell fossil molecule comet enzyme neutron"),
    ),
    "travel": (
        _split("pilot tourist sailor driver passenger guide backpacker steward"),
        _split("visited booked boarded toured crossed reached"),
        _split("plane hotel ticket train ferry desert passport luggage"),
    ),
    "money": (
        _split("banker trader investor merchant broker cashier accountant lender"),
        _split("sold paid borrowed invested traded taxed"),
        _split("loan shares profit debt stocks currency bond mortgage"),
    ),
}

#: kind -> its members
KINDS = {
    "bird": _split("robin crow eagle owl swan parrot sparrow falcon heron magpie"),
    "fish": _split("shark trout salmon cod tuna carp herring eel perch pike"),
    "tree": _split("oak pine birch maple willow elm cedar beech larch poplar"),
    "flower": _split("rose tulip daisy lily violet orchid poppy daffodil jasmine dahlia"),
    "fruit": _split("apple pear plum cherry grape lemon peach mango melon apricot"),
    "tool": _split("hammer saw drill spade axe rake chisel wrench pliers shovel"),
    "insect": _split("ant bee wasp moth beetle fly cricket mosquito hornet locust"),
    "instrument": _split("piano violin flute drum harp trumpet cello oboe banjo tuba"),
}

#: two sides of one quality, each in a plain and in a rarer word
OPPOSITES = (
    (("big", "large"), ("small", "tiny")),
    (("hot", "boiling"), ("cold", "icy")),
    (("fast", "quick"), ("slow", "sluggish")),
    (("old", "ancient"), ("new", "modern")),
    (("wet", "soaked"), ("dry", "arid")),
    (("loud", "noisy"), ("quiet", "silent")),
    (("dark", "dim"), ("bright", "shiny")),
    (("hard", "firm"), ("soft", "fluffy")),
    (("full", "packed"), ("empty", "vacant")),
    (("strong", "sturdy"), ("weak", "frail")),
    (("tall", "towering"), ("short", "stubby")),
    (("thick", "fat"), ("thin", "slim")),
    (("sharp", "pointed"), ("blunt", "rounded")),
    (("rough", "bumpy"), ("smooth", "even")),
    (("open", "ajar"), ("closed", "shut")),
    (("heavy", "weighty"), ("light", "feathery")),
)

#: what somebody was -> what somebody therefore did, in two wordings
CAUSES = (
    ("thirsty", ("drank some water", "filled a glass")),
    ("hungry", ("ate some bread", "made a sandwich")),
    ("tired", ("went to bed", "took a nap")),
    ("cold", ("lit the fire", "wore a scarf")),
    ("ill", ("called the doctor", "swallowed a pill")),
    ("lost", ("opened the map", "asked a stranger")),
    ("bored", ("read a book", "watched a film")),
    ("muddy", ("washed both hands", "used the soap")),
    ("late", ("ran to school", "caught the bus")),
    ("rich", ("bought a yacht", "hired a butler")),
    ("poor", ("begged for coins", "looked for work")),
    ("curious", ("looked inside", "peeked at it")),
    ("guilty", ("said sorry", "told the truth")),
    ("lonely", ("phoned a friend", "adopted a puppy")),
    ("sleepless", ("counted sheep", "drank warm milk")),
    ("sunburnt", ("sat in the shade", "bought some lotion")),
)

#: what a question asks for -> its openings, from common to rare
ASKED = {
    "person": ("who was it that", "which man", "what is the name of the woman who", "whose sister"),
    "place": (
        "where is it that somebody",
        "in which town was it that somebody",
        "at what spot was it that he",
    ),
    "time": ("when was it that somebody", "in what year was it that she", "on which day was it that he"),
    "number": ("how many people", "what total of guests", "what count of men"),
    "reason": ("why is it that somebody", "for what cause was it that he", "what made it so that she"),
}

#: verb -> its past
ACTS = {
    "find": "found",
    "open": "opened",
    "sell": "sold",
    "paint": "painted",
    "wash": "washed",
    "break": "broke",
    "lift": "lifted",
    "hide": "hid",
    "mend": "mended",
    "burn": "burned",
}

#: what somebody did about an act -> whether the act was done
IMPLICATIVES = {
    True: (("managed", "manage"), ("remembered", "remember"), ("dared", "dare"), ("chose", "choose")),
    False: (("failed", "fail"), ("forgot", "forget"), ("refused", "refuse"), ("declined", "decline")),
}

#: adverb before an act -> whether the act was done
ADVERBS = {
    True: _split("really surely quickly proudly gladly finally indeed calmly"),
    False: _split("nearly almost hardly scarcely never barely"),
}

#: quantifiers that hold for everybody, for some, for nobody
QUANTIFIERS = (
    ("all the", "every one of the", "each of the"),
    ("most of the", "many of the", "some of the", "several of the", "two of the", "half of the"),
    ("none of the", "not one of the", "zero of the"),
)
GUESTS = _split("guests pupils players sailors nurses farmers cousins pilots")

#: verb of opinion -> its past
OPINIONS = {"like": "liked", "hate": "hated", "praise": "praised", "enjoy": "enjoyed", "notice": "noticed"}
