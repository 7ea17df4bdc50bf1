"""Sentences in other languages: subject, verb phrase, place and a second clause, all of which fit.

Each column is independent of the others, so that any choice of one entry from each is a correct
sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

VOICES: Mapping[str, str] = MappingProxyType(
    {
        "de": "de",
        "es": "es",
        "fr": "fr-fr",
        "it": "it",
        "nl": "nl",
        "pl": "pl",
        "pt": "pt",
        "sv": "sv",
    }
)
"""ISO 639-1 code -> espeak-ng's voice."""
FOREIGN: Mapping[str, tuple[tuple[str, ...], ...]] = MappingProxyType(
    {
        "de": (
            ("Der alte Bauer", "Meine Schwester", "Die junge Lehrerin", "Ein m\u00fcder Soldat",
             "Unser Nachbar", "Der freundliche Arzt", "Die ber\u00fchmte S\u00e4ngerin",
             "Ein kleiner Junge"),
            ("tr\u00e4gt einen schweren Korb", "sucht seit Stunden einen Schl\u00fcssel",
             "liest eine lange Geschichte", "verkauft frisches Brot",
             "repariert ein altes Fahrrad", "schreibt einen Brief an die Stadt",
             "trinkt eine Tasse Tee", "malt ein buntes Bild"),
            ("neben der Kirche", "auf dem Marktplatz", "am Ufer des Flusses",
             "in der K\u00fcche", "vor dem Bahnhof", "unter der Br\u00fccke", "im Garten",
             "hinter dem Haus"),
            ("weil es drau\u00dfen regnet", "obwohl es schon sp\u00e4t ist",
             "w\u00e4hrend die Kinder schlafen", "bevor der Zug kommt",
             "und niemand sagt ein Wort", "aber das Wetter wird schlechter"),
        ),
        "es": (
            ("El viejo campesino", "Mi hermana", "La joven maestra", "Un soldado cansado",
             "Nuestro vecino", "El m\u00e9dico amable", "La famosa cantante",
             "Un ni\u00f1o peque\u00f1o"),
            ("lleva una cesta pesada", "busca una llave desde hace horas",
             "lee una historia muy larga", "vende pan fresco", "repara una bicicleta vieja",
             "escribe una carta al alcalde", "bebe una taza de t\u00e9",
             "pinta un cuadro de muchos colores"),
            ("al lado de la iglesia", "en la plaza del mercado", "a la orilla del r\u00edo",
             "en la cocina", "delante de la estaci\u00f3n", "debajo del puente",
             "en el jard\u00edn", "detr\u00e1s de la casa"),
            ("porque est\u00e1 lloviendo", "aunque ya es muy tarde",
             "mientras los ni\u00f1os duermen", "antes de que llegue el tren",
             "y nadie dice una palabra", "pero el tiempo empeora cada minuto"),
        ),
        "fr": (
            ("Le vieux fermier", "Ma s\u0153ur", "La jeune institutrice",
             "Un soldat fatigu\u00e9", "Notre voisin", "Le m\u00e9decin du village",
             "La c\u00e9l\u00e8bre chanteuse", "Un petit gar\u00e7on"),
            ("porte un panier tr\u00e8s lourd", "cherche une cl\u00e9 depuis des heures",
             "lit une longue histoire", "vend du pain frais", "r\u00e9pare un vieux v\u00e9lo",
             "\u00e9crit une lettre au maire", "boit une tasse de th\u00e9",
             "peint un grand tableau"),
            ("\u00e0 c\u00f4t\u00e9 de l'\u00e9glise", "sur la place du march\u00e9",
             "au bord de la rivi\u00e8re", "dans la cuisine", "devant la gare", "sous le pont",
             "dans le jardin", "derri\u00e8re la maison"),
            ("parce qu'il pleut dehors", "bien qu'il soit d\u00e9j\u00e0 tard",
             "pendant que les enfants dorment", "avant que le train arrive",
             "et personne ne dit un mot", "mais le temps devient mauvais"),
        ),
        "it": (
            ("Il vecchio contadino", "Mia sorella", "La giovane maestra", "Un soldato stanco",
             "Il nostro vicino", "Il medico gentile", "La famosa cantante", "Un bambino piccolo"),
            ("porta un cesto pesante", "cerca una chiave da molte ore", "legge una lunga storia",
             "vende pane fresco", "ripara una vecchia bicicletta",
             "scrive una lettera al sindaco", "beve una tazza di t\u00e8",
             "dipinge un quadro molto grande"),
            ("accanto alla chiesa", "nella piazza del mercato", "sulla riva del fiume",
             "in cucina", "davanti alla stazione", "sotto il ponte", "nel giardino",
             "dietro la casa"),
            ("perch\u00e9 fuori piove", "anche se \u00e8 gi\u00e0 tardi",
             "mentre i bambini dormono", "prima che arrivi il treno",
             "e nessuno dice una parola", "ma il tempo diventa sempre pi\u00f9 brutto"),
        ),
        "nl": (
            ("De oude boer", "Mijn zus", "De jonge lerares", "Een vermoeide soldaat",
             "Onze buurman", "De vriendelijke dokter", "De beroemde zangeres",
             "Een kleine jongen"),
            ("draagt een zware mand", "zoekt al uren naar een sleutel", "leest een lang verhaal",
             "verkoopt vers brood", "repareert een oude fiets",
             "schrijft een brief aan de burgemeester", "drinkt een kop thee",
             "schildert een groot schilderij"),
            ("naast de kerk", "op het marktplein", "aan de oever van de rivier", "in de keuken",
             "voor het station", "onder de brug", "in de tuin", "achter het huis"),
            ("omdat het buiten regent", "hoewel het al laat is", "terwijl de kinderen slapen",
             "voordat de trein komt", "en niemand zegt een woord",
             "maar het weer wordt steeds slechter"),
        ),
        "pl": (
            ("Stary rolnik", "Moja siostra", "M\u0142oda nauczycielka",
             "Zm\u0119czony \u017co\u0142nierz", "Nasz s\u0105siad", "Uprzejmy lekarz",
             "S\u0142awna piosenkarka", "Ma\u0142y ch\u0142opiec"),
            ("niesie ci\u0119\u017cki kosz", "od wielu godzin szuka klucza",
             "czyta d\u0142ug\u0105 histori\u0119", "sprzedaje \u015bwie\u017cy chleb",
             "naprawia stary rower", "pisze list do burmistrza",
             "pije fili\u017cank\u0119 herbaty", "maluje wielki obraz"),
            ("obok ko\u015bcio\u0142a", "na rynku", "nad brzegiem rzeki", "w kuchni",
             "przed dworcem", "pod mostem", "w ogrodzie", "za domem"),
            ("poniewa\u017c na dworze pada deszcz", "chocia\u017c jest ju\u017c p\u00f3\u017ano",
             "kiedy dzieci \u015bpi\u0105", "zanim przyjedzie poci\u0105g",
             "i nikt nie m\u00f3wi ani s\u0142owa", "ale pogoda jest coraz gorsza"),
        ),
        "pt": (
            ("O velho agricultor", "A minha irm\u00e3", "A jovem professora",
             "Um soldado cansado", "O nosso vizinho", "O m\u00e9dico simp\u00e1tico",
             "A famosa cantora", "Um menino pequeno"),
            ("leva um cesto pesado", "procura uma chave h\u00e1 muitas horas",
             "l\u00ea uma hist\u00f3ria muito longa", "vende p\u00e3o fresco",
             "repara uma bicicleta velha", "escreve uma carta ao presidente",
             "bebe uma ch\u00e1vena de ch\u00e1", "pinta um quadro muito grande"),
            ("ao lado da igreja", "na pra\u00e7a do mercado", "na margem do rio", "na cozinha",
             "em frente da esta\u00e7\u00e3o", "debaixo da ponte", "no jardim",
             "atr\u00e1s da casa"),
            ("porque est\u00e1 a chover", "embora j\u00e1 seja tarde",
             "enquanto as crian\u00e7as dormem", "antes que o comboio chegue",
             "e ningu\u00e9m diz uma palavra", "mas o tempo est\u00e1 cada vez pior"),
        ),
        "sv": (
            ("Den gamla bonden", "Min syster", "Den unga l\u00e4raren", "En tr\u00f6tt soldat",
             "V\u00e5r granne", "Den v\u00e4nliga l\u00e4karen",
             "Den ber\u00f6mda s\u00e5ngerskan", "En liten pojke"),
            ("b\u00e4r en tung korg", "letar efter en nyckel i flera timmar",
             "l\u00e4ser en l\u00e5ng ber\u00e4ttelse", "s\u00e4ljer nybakat br\u00f6d",
             "lagar en gammal cykel", "skriver ett brev till borgm\u00e4staren",
             "dricker en kopp te", "m\u00e5lar en stor tavla"),
            ("bredvid kyrkan", "p\u00e5 torget", "vid flodens strand", "i k\u00f6ket",
             "framf\u00f6r stationen", "under bron", "i tr\u00e4dg\u00e5rden", "bakom huset"),
            ("eftersom det regnar ute", "fast det redan \u00e4r sent", "medan barnen sover",
             "innan t\u00e5get kommer", "och ingen s\u00e4ger ett ord",
             "men v\u00e4dret blir s\u00e4mre och s\u00e4mre"),
        ),
    }
)  # fmt: skip
